import io
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from service.config import ConfigError
from service.errors import StoreUnavailable
from service.telemetry import Telemetry, configure_logging

logger = logging.getLogger("service.test_telemetry")
CONTENT = "what the caller said"


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    """What the process would write; the root logger is pytest's again afterwards."""
    root = logging.getLogger()
    handlers, level, root.handlers = root.handlers, root.level, []
    stream = io.StringIO()
    configure_logging(stream)
    yield stream
    root.handlers = handlers
    root.setLevel(level)


def lines_of(output: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.getvalue().splitlines()]


def test_a_record_is_one_json_object_with_its_fields_beside_the_message(output: io.StringIO) -> None:
    logger.warning("lease not renewed", extra={"invocation_id": "inv_1", "retry_s": 0.5})

    (line,) = lines_of(output)
    assert line.pop("timestamp")[:2] == "20"
    assert line == {
        "level": "WARNING",
        "message": "lease not renewed",
        "service": "headrace",
        "invocation_id": "inv_1",
        "retry_s": 0.5,
    }


def test_debug_is_silent_and_so_are_the_libraries(output: io.StringIO) -> None:
    logger.debug("purged")
    for name in ("uvicorn.error", "botocore.endpoint", "aiobotocore.x", "asyncio"):
        logging.getLogger(name).info("body: what the caller said")

    assert output.getvalue() == ""


def test_a_blocked_loop_is_a_warning_with_all_that_is_known_of_it(output: io.StringIO) -> None:
    Telemetry().loop_blocked({"loop": "research", "blocked": True, "blocks": 1, "invocation_id": ""})

    (line,) = lines_of(output)
    del line["timestamp"]
    assert line == {
        "level": "WARNING",
        "message": "event loop blocked",
        "service": "headrace",
        "loop": "research",
        "blocked": True,
        "blocks": 1,
    }


def test_the_canonical_lines_have_all_fields_that_say_something(output: io.StringIO) -> None:
    Telemetry().request_finished({"request_id": "r-1", "status": 200, "code": "", "bytes_out": 0})
    Telemetry().attempt_finished({"invocation_id": "inv_1", "state": "completed", "first_frame_ms": None})

    shown = [{name: line[name] for name in line if name != "timestamp"} for line in lines_of(output)]
    assert shown == [
        {
            "level": "INFO",
            "message": "request",
            "service": "headrace",
            "request_id": "r-1",
            "status": 200,
            "bytes_out": 0,
        },
        {
            "level": "INFO",
            "message": "attempt",
            "service": "headrace",
            "invocation_id": "inv_1",
            "state": "completed",
        },
    ]


@pytest.mark.parametrize(
    ("operation", "status", "written"),
    [("ping", 200, 0), ("ready", 200, 0), ("ready", 503, 1), ("usage", 200, 1)],
)
def test_health_checks_that_went_well_are_not_written(
    output: io.StringIO, operation: str, status: int, written: int
) -> None:
    Telemetry().request_finished({"operation": operation, "status": status})

    assert len(lines_of(output)) == written


def test_a_text_of_several_lines_stays_one_line(output: io.StringIO) -> None:
    logger.error("first\nsecond\u2028third", extra={"stack": "a\nb"})

    (line,) = output.getvalue().split("\n")[:-1]
    assert json.loads(line)["stack"] == "a\nb"


def fails(text: str) -> None:
    raise KeyError(text)


@pytest.mark.promise("no-content-in-logs")
def test_an_exception_shows_its_stack_and_causes_and_quotes_no_library(output: io.StringIO) -> None:
    try:
        try:
            fails(CONTENT)
        except KeyError as error:
            raise RuntimeError(CONTENT) from error
    except RuntimeError:
        logger.exception("runtime failed", extra={"invocation_id": "inv_1"})

    (line,) = lines_of(output)
    failure, cause = line["exception"].split("\ncaused by\n")
    assert (line["exception_name"], line["invocation_id"]) == ("RuntimeError", "inv_1")
    assert failure.splitlines()[-1] == "builtins.RuntimeError"
    assert cause.splitlines()[-1] == "builtins.KeyError"
    assert f'File "{__file__}"' in failure
    assert CONTENT not in output.getvalue()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (StoreUnavailable("The store is closed."), "service.errors.StoreUnavailable: The store is closed."),
        (ConfigError(["PORT is bad"]), "service.config.ConfigError: PORT is bad"),
        (OSError(98, "Address already in use"), "builtins.OSError: [Errno 98] Address already in use"),
        (TimeoutError("a caller's words"), "builtins.TimeoutError"),
        (ValueError("a caller's words"), "builtins.ValueError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_is_ours_or_the_systems_is_quoted(output: io.StringIO, error: Exception, said: str) -> None:
    logger.error("failed", exc_info=error)

    (line,) = lines_of(output)
    assert line["exception"] == said


def test_a_circle_of_causes_ends(output: io.StringIO) -> None:
    first, second = ValueError(), TypeError()
    first.__cause__, second.__cause__ = second, first

    logger.error("failed", exc_info=first)

    assert lines_of(output)[0]["exception"].count("caused by") == 4


def test_logging_goes_to_standard_output_unless_told(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level, root.handlers = root.handlers, root.level, []
    try:
        configure_logging(sys.stdout)
        logger.info("serving")
    finally:
        root.handlers = handlers
        root.setLevel(level)

    assert json.loads(capsys.readouterr().out)["message"] == "serving"
