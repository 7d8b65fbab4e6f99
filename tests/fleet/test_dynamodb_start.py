"""A configuration of DynamoDB that can't be stops the start, with one line for each thing that is wrong."""

import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest

from local.dynamodb import DynamoDbLocal
from service import __main__ as process
from service.config import ConfigError
from service.errors import StoreUnavailable
from service.stores.dynamodb import DynamoStore
from service.stores.dynamodb_tables import INVOCATIONS, USAGE
from tests.dynamodb import Tables
from tests.dynamodb_faults import Faults, refusal, throttled, unreachable
from tests.fleet.conftest import OpenStore

CATALOG: Final = """
[upstreams.bedrock]
kind = "bedrock"

[runtimes.writer]
kind = "converse"
model = "bedrock/model-1"
"""

Run = Callable[..., tuple[int, list[str]]]
Made = Callable[..., Tables]


@pytest.fixture
def run(
    tables: Tables, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """Run `main` on the test's tables; gives its status and the lines on stderr."""
    root, uvicorn_error = logging.getLogger(), logging.getLogger("uvicorn.error")
    handlers, level, root.handlers = root.handlers, root.level, []
    interval_s = sys.getswitchinterval()
    catalog = tmp_path / "headrace.toml"
    catalog.write_text(CATALOG)

    def run(**settings: str) -> tuple[int, list[str]]:
        given = {
            "CATALOG": str(catalog),
            "ISSUER": "http://127.0.0.1:9",
            "AUDIENCES": "client-1",
            "STORE": "dynamodb",
            "USAGE_TABLE": tables.usage,
            "INVOCATIONS_TABLE": tables.invocations,
            "PORT": "0",
        }
        for name, value in (given | settings).items():
            monkeypatch.setenv(f"HEADRACE_{name}", value)
        return process.main(), capfd.readouterr().err.splitlines()

    yield run
    root.handlers = handlers
    root.setLevel(level)
    uvicorn_error.disabled = False
    sys.setswitchinterval(interval_s)


@pytest.fixture
def made(emulator: DynamoDbLocal, tables: Tables) -> Iterator[Made]:
    """Make tables that are not quite the service's; deleted after the test."""
    names: list[str] = []

    def make(kind: str, **changed: Any) -> Tables:
        name = f"{tables.usage}-other"
        definition = (USAGE if kind == "usage" else INVOCATIONS).definition(name) | changed
        emulator.create_tables({key: value for key, value in definition.items() if value is not None})
        names.append(name)
        return Tables(name, tables.invocations) if kind == "usage" else Tables(tables.usage, name)

    yield make
    emulator.delete_tables(*names)


async def faults_of(open_store: OpenStore, **named: Any) -> list[str]:
    """Return why a store can't be opened."""
    with pytest.raises(ConfigError) as error:
        async with open_store(**named):
            pass
    return error.value.faults


def keys(*schema: tuple[str, str, str]) -> dict[str, Any]:
    """Return a definition's keys: name, kind and type of each."""
    return {
        "KeySchema": [{"AttributeName": name, "KeyType": kind} for name, kind, _ in schema],
        "AttributeDefinitions": [
            {"AttributeName": name, "AttributeType": type_} for name, _, type_ in schema
        ],
    }


# ---------------------------------------------------------------- what a table must be


async def test_tables_that_are_not_there_are_named(open_store: OpenStore) -> None:
    faults = await faults_of(open_store, tables=Tables("no-usage", "no-invocations"))

    assert faults == [
        "HEADRACE_USAGE_TABLE: the table no-usage is not there, in this region and account",
        "HEADRACE_INVOCATIONS_TABLE: the table no-invocations is not there, in this region and account",
    ]


@pytest.mark.parametrize("sort_key", ["period", None])
async def test_a_wrong_key_is_shown_beside_the_right_one(
    sort_key: str | None, open_store: OpenStore, made: Made
) -> None:
    sort = [] if sort_key is None else [(sort_key, "RANGE", "S")]
    wrong = made("usage", **keys(("user_id", "HASH", "S"), *sort))
    found = ", ".join(["user_id", *(name for name, _, _ in sort)])
    told = f"the table {wrong.usage} has the key ({found}) and must have (user_id, period_id)"

    assert await faults_of(open_store, tables=wrong) == [f"HEADRACE_USAGE_TABLE: {told}"]


async def test_a_key_of_another_type_is_named(open_store: OpenStore, made: Made) -> None:
    wrong = made("usage", **keys(("user_id", "HASH", "S"), ("period_id", "RANGE", "N")))
    faults = await faults_of(open_store, tables=wrong)

    assert faults == [
        f"HEADRACE_USAGE_TABLE: in the table {wrong.usage} the key 'period_id' must be of type S"
    ]


async def test_missing_indexes_are_named(open_store: OpenStore, made: Made) -> None:
    wrong = made(
        "invocations", GlobalSecondaryIndexes=None, **keys(("pk", "HASH", "S"), ("sk", "RANGE", "S"))
    )
    faults = await faults_of(open_store, tables=wrong)

    needs = f"HEADRACE_INVOCATIONS_TABLE: the table {wrong.invocations} needs the global index"
    assert faults == [
        f"{needs} 'held' with the key (holder, held_at_ms)",
        f"{needs} 'listed' with the key (listing, listed_at)",
    ]


async def test_tables_that_are_swapped_are_both_wrong(open_store: OpenStore, tables: Tables) -> None:
    faults = await faults_of(open_store, tables=Tables(tables.invocations, tables.usage))

    assert [fault.split(":")[0] for fault in faults] == [
        "HEADRACE_USAGE_TABLE",
        *["HEADRACE_INVOCATIONS_TABLE"] * 3,
    ]


# ---------------------------------------------------------------- who may ask


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("AccessDeniedException", "the permission dynamodb:DescribeTable is missing"),
        ("UnrecognizedClientException", "the credentials are not known"),
        ("ExpiredTokenException", "the credentials have expired"),
    ],
)
async def test_a_refused_description_says_what_is_missing(
    code: str, told: str, open_store: OpenStore, faults: Faults, tables: Tables
) -> None:
    async def refused(*call: Any) -> Any:
        raise refusal(code, "DescribeTable")

    faults.always(refused)

    assert await faults_of(open_store) == [
        f"{setting}: the table {name} can't be described: {told}"
        for setting, name in (
            ("HEADRACE_USAGE_TABLE", tables.usage),
            ("HEADRACE_INVOCATIONS_TABLE", tables.invocations),
        )
    ]


async def test_throttling_is_no_fault_of_the_configuration(open_store: OpenStore, faults: Faults) -> None:
    faults.at(1, throttled, times=2)

    async with open_store() as store:
        assert await store.load_invocation("inv_1") is None


async def test_a_store_that_does_not_answer_is_unavailable(open_store: OpenStore, faults: Faults) -> None:
    faults.always(unreachable)

    with pytest.raises(StoreUnavailable):
        async with open_store(deadline_s=0.2):
            pass


async def test_the_region_may_be_in_either_variable(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    for missing, given in (("AWS_DEFAULT_REGION", "AWS_REGION"), ("AWS_REGION", "AWS_DEFAULT_REGION")):
        monkeypatch.delenv(missing, raising=False)
        monkeypatch.setenv(given, "eu-west-1")
        async with DynamoStore.open(**tables.names) as store:  # type: ignore[arg-type]
            assert await store.load_invocation("inv_1") is None


async def test_without_credentials_it_says_so(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)

    with pytest.raises(ConfigError) as error:
        async with DynamoStore.open(**tables.names):  # type: ignore[arg-type]
            pass

    assert error.value.faults == ["DynamoDB: Unable to locate credentials"]


# ---------------------------------------------------------------- the process


@pytest.mark.promise("unknown-names-stop-start")
def test_the_process_ends_with_a_line_for_a_table_that_is_missing(run: Run) -> None:
    assert run(USAGE_TABLE="no-usage") == (
        2,
        ["headrace: HEADRACE_USAGE_TABLE: the table no-usage is not there, in this region and account"],
    )


@pytest.mark.promise("unknown-names-stop-start")
def test_the_process_ends_with_a_line_for_a_table_that_has_other_keys(run: Run, made: Made) -> None:
    wrong = made("usage", **keys(("user_id", "HASH", "S"), ("period", "RANGE", "S")))

    status, lines = run(USAGE_TABLE=wrong.usage)

    assert (status, len(lines)) == (2, 1)
    assert lines[0].endswith("has the key (user_id, period) and must have (user_id, period_id)")


@pytest.mark.promise("unknown-names-stop-start")
def test_the_process_ends_with_a_line_when_there_is_no_region(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)

    assert run() == (2, ["headrace: AWS_REGION is not set"])


@pytest.mark.promise("unknown-names-stop-start")
def test_the_process_ends_with_a_line_when_there_are_no_credentials(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)

    assert run() == (2, ["headrace: DynamoDB: Unable to locate credentials"])


@pytest.mark.promise("unknown-names-stop-start")
def test_the_process_ends_with_a_line_for_each_table_that_it_may_not_use(
    run: Run, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Refusing("AccessDeniedException") as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", url)
        status, lines = run()

    missing = "can't be described: the permission dynamodb:DescribeTable is missing"
    assert (status, lines) == (
        2,
        [
            f"headrace: HEADRACE_USAGE_TABLE: the table {tables.usage} {missing}",
            f"headrace: HEADRACE_INVOCATIONS_TABLE: the table {tables.invocations} {missing}",
        ],
    )


class Refusing:
    """A DynamoDB on loopback that refuses everything with one code; gives its URL."""

    def __init__(self, code: str) -> None:
        body = json.dumps({"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": "no"}).encode()

        class Answer(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                self.send_response(400)
                self.send_header("content-type", "application/x-amz-json-1.0")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
