"""The repository keeps its architecture: layers, packages, names, sizes, no hidden state.

`architecture.py` has the table of the layers, `source_rules.py` what each module keeps by itself. Each check
is also shown to fail, on sources made for it.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import architecture, source_rules
from tests.architecture import Module

ROOT = Path(__file__).parents[1]


def modules_of(*packages: str) -> dict[str, Module]:
    """Read the modules of packages that are there, by dotted name."""
    modules = {}
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            modules[name] = Module(name, path.read_text(encoding="utf-8"))
    return modules


def made(**sources: str) -> dict[str, Module]:
    """Make modules of sources: `service__log` is `service.log`, `service__models__` the package itself."""
    names = [name.rstrip("_").replace("__", ".") for name in sources]
    return {name: Module(name, source) for name, source in zip(names, sources.values(), strict=True)}


SERVICE = modules_of("service")
SHIPPED = SERVICE | modules_of("infra", "local")
EVERYTHING = SHIPPED | modules_of("bench", "tests")


def test_the_service_imports_only_downwards() -> None:
    assert architecture.layer_faults(SERVICE) == []


def test_the_table_names_what_is_there() -> None:
    assert architecture.table_faults(SERVICE) == []


def test_nothing_imports_in_a_circle() -> None:
    assert architecture.cycle_faults(SHIPPED) == []


def test_libraries_are_known_only_to_the_modules_they_belong_to() -> None:
    assert architecture.third_party_faults(SERVICE) == []


def test_packages_stand_alone() -> None:
    assert architecture.package_faults(SHIPPED | modules_of("bench")) == []


def test_names_have_no_forbidden_words() -> None:
    assert [fault for module in SHIPPED.values() for fault in source_rules.name_faults(module)] == []


def test_modules_and_functions_are_short() -> None:
    assert [fault for module in EVERYTHING.values() for fault in source_rules.size_faults(module)] == []


def test_the_environment_is_read_where_programs_begin_only() -> None:
    others = [module for name, module in SERVICE.items() if name not in ("service.__main__", "service.cli")]

    assert [fault for module in others for fault in source_rules.environment_faults(module)] == []


def test_modules_have_no_state() -> None:
    assert [fault for module in SHIPPED.values() for fault in source_rules.state_faults(module)] == []


def test_an_import_upwards_is_found() -> None:
    modules = made(
        service="",
        service__errors="from service.log import Log",
        service__log="from service.stores import sqlite\nfrom service.wire import frame",
        service__wire="def frame():\n    from service import errors, runner",
        service__stores__="from service.errors import Fenced",
        service__stores__sqlite="import service.log",
        service__runner="",
        service__api="from service.stores.sqlite import SqliteStore",
        service__cli="from service import errors",
        service__app="from service import api, log\nfrom service.stores.sqlite import SqliteStore",
        service__cli_screen="from service import cli, client_stream, wire",
        service__client_stream="from service.client import Answer",
        service__client="",
        service__stores__sqlite_schema="from service.stores.sqlite import SqliteStore",
        service__novelty_part="",
    )

    assert architecture.layer_faults(modules) == [
        "service.errors may not import service.log",
        "service.log may not import service.stores.sqlite",
        "service.wire may not import service.runner",
        "service.stores.sqlite may not import service.log",
        "service.api may not import service.stores.sqlite",
        "service.cli may not import service.errors",
        "service.cli_screen may not import service.wire",
        "service.novelty_part has no layer",
    ]


def test_a_relative_import_is_refused() -> None:
    with pytest.raises(ValueError, match=r"service\.log line 1: imports are absolute"):
        architecture.layer_faults(made(service__log="from . import wire"))


def test_a_table_that_lags_behind_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architecture, "LAYERS", {0: {"errors", "gone"}, 2: {"log", "wire"}})
    monkeypatch.setattr(architecture, "EDGES", {"log": {"wire"}, "gone": {"log"}})
    monkeypatch.setattr(architecture, "COMMAND_LINE", {})

    assert architecture.table_faults(made(service__errors="", service__log="", service__wire="")) == [
        "the table names service.gone, which is not there",
        "service.log no longer imports service.wire",
    ]


def test_a_circle_is_found() -> None:
    modules = made(
        service__log="from service import wire",
        service__wire="import service.follow",
        service__follow="def late():\n    from service.log import Log",
        service__errors="",
        service__api="import service.errors, service.log",
    )

    assert architecture.cycle_faults(modules) == [
        "service.follow is in a cycle, or between two",
        "service.log is in a cycle, or between two",
        "service.wire is in a cycle, or between two",
    ]


def test_a_library_in_the_wrong_place_is_found() -> None:
    modules = made(
        service__errors="import json, orjson",
        service__log="import orjson, sqlite3",
        service__stores__sqlite="import sqlite3",
        service__models__bedrock="from botocore.auth import SigV4Auth",
        service__api="from starlette.routing import Route\nimport boto3",
        service__client="import http.client, aiohttp",
    )

    assert architecture.third_party_faults(modules) == [
        "service.errors may not import orjson",
        "service.log may not import sqlite3",
        "service.api may not import boto3",
        "service.client may not import aiohttp",
    ]


def test_packages_that_know_each_other_are_found() -> None:
    modules = made(
        service__log="from local import issuer",
        infra__app="from service.config import Settings",
        local__issuer="from tests.clock import ManualClock",
        bench__load="import service.wire",
    )

    assert architecture.package_faults(modules) == [
        "service.log may not import local",
        "infra.app may not import service",
        "local.issuer may not import tests",
    ]


NAMES = """
import contextlib as common_context
class StreamHandler: ...
class AbstractStore: ...
class Frames(asyncio.Protocol):
    def data_received(self, data): ...
def parse_info(raw_data, *, metadata, base_url):
    self.core = raw_data.context
"""


def test_forbidden_words_in_names_are_found() -> None:
    assert source_rules.name_faults(Module("service.http_utils", NAMES)) == [
        "service.http_utils: utils",
        "service.http_utils line 0: common_context",
        "service.http_utils line 3: StreamHandler",
        "service.http_utils line 4: AbstractStore",
        "service.http_utils line 7: parse_info",
        "service.http_utils line 7: raw_data",
        "service.http_utils line 8: core",
    ]


def test_what_is_too_long_is_found() -> None:
    body = "    pass\n"
    source = f"def longest():\n{body * 59}async def too_long():\n{body * 60}"

    assert source_rules.size_faults(Module("service.log", source)) == ["service.log.too_long: 61 lines"]
    assert source_rules.size_faults(Module("service.log", "\n" * 400)) == []
    assert source_rules.size_faults(Module("service.log", "\n" * 401)) == ["service.log: 401 lines"]


STATE = """
import logging
__all__ = ["LIMIT"]
logger = logging.getLogger(__name__)
LIMIT: Final = 3
_TABLE = {1: 2}
Row = TypeVar("Row")
type_only: int
router = Router()
store: Store = connect()
_CACHE: dict[str, int] = {}
SEEN = collections.deque()
def count():
    global counter
"""


@pytest.mark.parametrize(
    ("check", "source", "faults"),
    [
        (
            source_rules.environment_faults,
            "import os\nfrom os import path, environ\nos.getenv('A')\nos.environ['B']\nos.cpu_count()",
            [f"service.log line {line} reads the environment" for line in (2, 3, 4)],
        ),
        (
            source_rules.state_faults,
            STATE,
            [
                "service.log line 14: global counter",
                "service.log line 9: router = Router()",
                "service.log line 10: store = connect()",
                "service.log line 11: _CACHE = {}",
                "service.log line 12: SEEN = collections.deque()",
            ],
        ),
    ],
    ids=["environment", "state"],
)
def test_hidden_inputs_and_state_are_found(
    check: Callable[[Module], list[str]], source: str, faults: list[str]
) -> None:
    assert sorted(check(Module("service.log", source))) == sorted(faults)
