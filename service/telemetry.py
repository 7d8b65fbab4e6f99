"""Telemetry: two canonical log lines, one per HTTP request and one per finished attempt, as JSON on stdout;
and one per change of a breaker.

`__main__` configures logging, `app` hands `Telemetry` to who observes. The only module that knows Powertools:
its formatter makes every record of the standard `logging` one JSON object, fields beside the constant
message. Its `Logger` and `Metrics` keep state per process or class and were made for one invocation at a
time, so they are not used.

No prompt, tool argument, completion, token or raw header is ever a field. A logged exception shows its stack
and the types of its causes, and what it says only where it is ours or the system's: a library's text may
quote any of these.
"""

import logging
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any, Final, TextIO

import orjson
from aws_lambda_powertools.logging.formatter import LambdaPowertoolsFormatter

from service.config import ConfigError
from service.errors import HeadraceError

REQUESTS: Final = logging.getLogger("headrace.request")
ATTEMPTS: Final = logging.getLogger("headrace.attempt")
BREAKERS: Final = logging.getLogger("headrace.breaker")
LOOPS: Final = logging.getLogger("headrace.loop")
CAUSES_SHOWN: Final = 5
SERVICE: Final = "headrace"
FIELDS: Final = "canonical_fields"
"""The attribute of a canonical line's record that has its fields: written in one go, 4 us instead of 40."""


class Telemetry:
    """Writes the canonical lines."""

    def request_finished(self, fields: Mapping[str, Any]) -> None:
        """One HTTP request was answered; `fields` are the edge's. Good health is only DEBUG."""
        is_health = fields.get("operation") in ("ping", "ready") and fields.get("status") == 200
        _write(REQUESTS, logging.DEBUG if is_health else logging.INFO, "request", fields)

    def attempt_finished(self, fields: Mapping[str, Any]) -> None:
        """One attempt has ended; `fields` are the runner's."""
        _write(ATTEMPTS, logging.INFO, "attempt", fields)

    def breaker_changed(self, fields: Mapping[str, Any]) -> None:
        """A model is left alone, is probed, or answers again; `fields` are its breaker's."""
        level = logging.INFO if fields.get("state") == "closed" else logging.WARNING
        BREAKERS.log(level, "breaker", extra=_named(fields))

    def loop_blocked(self, fields: Mapping[str, Any]) -> None:
        """An event loop is blocked, or goes on again; `fields` are the watchdog's. Called in its thread."""
        LOOPS.warning("event loop blocked", extra=_named(fields))


def _write(logger: logging.Logger, level: int, message: str, fields: Mapping[str, Any]) -> None:
    """Log a canonical line without looking for who called: that costs as much as the rest of it."""
    if logger.isEnabledFor(level):
        record = logger.makeRecord(logger.name, level, "", 0, message, (), None)
        setattr(record, FIELDS, _named(fields))
        logger.handle(record)


def _named(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value not in (None, "")}


class _Formatter(LambdaPowertoolsFormatter):
    """JSON lines in which exceptions quote nobody's content."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, FIELDS, None)
        if fields is None:
            return super().format(record)
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(record.created))
        line = {
            "timestamp": f"{moment},{int(record.msecs):03}+0000",
            "level": record.levelname,
            "message": record.msg,
            "service": SERVICE,
            **fields,
        }
        return orjson.dumps(line, default=str).decode()

    def formatException(self, ei: Any) -> str:  # noqa: N802 (the name is logging's)
        shown: list[str] = []
        error: BaseException | None = ei[1]
        while error is not None and len(shown) < CAUSES_SHOWN:
            said = f": {error}" if _may_be_quoted(error) else ""
            stack = "".join(traceback.format_tb(error.__traceback__))
            shown.append(f"{stack}{type(error).__module__}.{type(error).__qualname__}{said}")
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        return "\ncaused by\n".join(shown)


def _may_be_quoted(error: BaseException) -> bool:
    """Tell whether an exception's text is ours, or the operating system's (which has a number)."""
    return isinstance(error, HeadraceError | ConfigError) or (
        isinstance(error, OSError) and error.errno is not None
    )


def configure_logging(stream: TextIO = sys.stdout) -> None:
    """Send every log record of the process to `stream`, one JSON object a line."""
    formatter = _Formatter(
        service=SERVICE,
        utc=True,
        log_record_order=["timestamp", "level", "message"],
        location=None,
        serialize_stacktrace=False,  # it would add what the exception says
    )
    output = logging.StreamHandler(stream)
    output.setFormatter(formatter)
    # What no line shows, no record need find out: https://docs.python.org/3/howto/logging.html#optimization
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.basicConfig(level=logging.INFO, handlers=[output], force=True)
    # uvicorn says what `__main__` says better; AWS's libraries log request bodies at DEBUG.
    for name in ("uvicorn", "botocore", "aiobotocore", "aioboto3", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
