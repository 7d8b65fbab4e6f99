"""What holds for every test: its event loop, no way out to the network, and no silent skip under CI."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from ipaddress import ip_address
from typing import Any

import aioboto3
import pytest
from pytest_asyncio import is_async_test

from local.dynamodb import DynamoDbLocal
from local.emulators import why_no_dynamodb
from service.agent_loops import AgentLoop
from tests.clock import ManualClock, ManualLoop
from tests.dynamodb import Tables

ON_MANUAL_TIME = ("tests/unit/", "tests/contracts/")
NO_EMULATOR = "Skipped: DynamoDB Local"
FAKE_AWS = {
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",  # the example key of the AWS documentation
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    # An empty file: nothing of the person's own configuration is read.
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


class NetworkRefused(RuntimeError):
    """A test tried to leave this machine."""


def pytest_configure() -> None:
    """Take away this machine's AWS account and settings, and the network, before any test is imported."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "HEADRACE_"))]:
        del os.environ[name]
    for name in ("http_proxy", "https_proxy", "all_proxy"):  # a proxy on loopback would be a way out
        os.environ.pop(name, None)
        os.environ.pop(name.upper(), None)
    os.environ.update(FAKE_AWS)
    sys.addaudithook(_refuse_network)


def _refuse_network(event: str, args: tuple[Any, ...]) -> None:
    """Refuse addresses that are not loopback.

    An audit hook sees every socket of the interpreter, whichever library opens it, and nothing is patched:
    https://docs.python.org/3/library/audit_events.html. (uvloop's sockets have no audit events; tests run on
    asyncio's own loop, and the processes that e2e tests start have the fake keys from the environment.)
    """
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = args[1]
        # A path is a Unix socket; None is a socket that is connected already.
        host = address[0] if isinstance(address, tuple) else None
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = args[0]
    else:
        return
    if not _is_loopback(host):
        raise NetworkRefused(f"{event} to {host!r}: tests talk to this machine only")


def _is_loopback(host: str | bytes | None) -> bool:
    name = host.decode("ascii", "replace") if isinstance(host, bytes) else host
    if name in (None, "", "localhost"):
        return True
    try:
        return ip_address(str(name).partition("%")[0]).is_loopback
    except ValueError:
        return False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under CI a skipped test is a failed one: what is green there has run."""
    report = yield
    if isinstance(report.longrepr, tuple) and report.longrepr[2].startswith(NO_EMULATOR):
        report.longrepr = (__file__, 1, report.longrepr[2])  # the same place for all of them is one line
    if report.skipped and not hasattr(report, "wasxfail") and not item.get_closest_marker("allowed_skip"):
        _fail_skip_under_ci(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module that skips itself while it is collected."""
    report = yield
    if report.skipped:
        _fail_skip_under_ci(report)
    return report


def _fail_skip_under_ci(report: pytest.TestReport | pytest.CollectReport) -> None:
    if os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"skipped under CI: {report.longreprtext or report.longrepr}"


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run unit and contract tests on manual time, and everything that starts processes on real time."""
    path = item.path.relative_to(config.rootpath).as_posix()
    if path.startswith(ON_MANUAL_TIME):
        return {"manual": ManualLoop}
    return {"asyncio": asyncio.SelectorEventLoop}


@pytest.fixture
async def clock(request: pytest.FixtureRequest) -> ManualClock:
    """Give the clock of the loop that runs this test; to a test without a loop, a clock of its own."""
    loop = asyncio.get_running_loop()
    if isinstance(loop, ManualLoop):
        return loop.clock
    if is_async_test(request.node):
        raise TypeError("the manual clock is for tests/unit and tests/contracts; this test runs in real time")
    return ManualClock()


@pytest.fixture(params=["one thread", "two threads"])
async def agent_loop(request: pytest.FixtureRequest) -> AsyncIterator[asyncio.AbstractEventLoop]:
    """Run agents in the test's own loop, and, as in production, in another thread's."""
    if request.param == "one thread":
        yield asyncio.get_running_loop()
        return
    other = AgentLoop("agent")
    other.start()
    yield other.loop
    await other.aclose()


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DynamoDbLocal]:
    """Run DynamoDB Local for all tests, on whatever loop. (One that cuts or stalls it starts its own.)"""
    missing = why_no_dynamodb()
    if missing is not None:
        pytest.skip(missing)
    with DynamoDbLocal(tmp_path_factory.mktemp("dynamodb")) as running:
        yield running


@pytest.fixture
def tables(emulator: DynamoDbLocal, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tables]:
    """Give empty tables of the service, in a DynamoDB that AWS's SDK finds through the environment."""
    for name, value in emulator.environ.items():
        monkeypatch.setenv(name, value)
    with Tables.created(emulator) as created:
        yield created


@pytest.fixture(scope="session")
def aws() -> aioboto3.Session:
    """Give one session of AWS's SDK to all tests: it reads its model of DynamoDB once, not for each store."""
    return aioboto3.Session()
