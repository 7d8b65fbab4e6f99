"""DynamoDB Local is reached from this machine only, fails when it is told to, and leaves nothing behind."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import aioboto3
import pytest
from botocore.exceptions import ClientError

from local.dynamodb import DynamoDbError, DynamoDbLocal, EmulatorDied
from local.places import clean_environ
from local.process import ROOT
from local.stack import Stack
from service.stores.dynamodb_tables import INVOCATIONS, USAGE
from tests.dynamodb import STACK_TABLES, Tables

# Tries a port at every address of this machine, its network's included (tests can't leave loopback).
CALLER = """
import re, socket, sys
trie = open("/proc/net/fib_trie").read()
addresses = {"127.0.0.2", *re.findall(r"-- ([0-9.]+)\\n[^-+]*/32 host LOCAL", trie)}
six = [line.split() for line in open("/proc/net/if_inet6")]
addresses |= {":".join(re.findall("....", fields[0])) for fields in six}
for address in addresses:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as caller:
        caller.settimeout(5)
        if caller.connect_ex((address, int(sys.argv[1]))) == 0:
            print(address)
"""
SUPERVISOR = """
import pathlib, signal, sys
from local.dynamodb import DynamoDbLocal

with DynamoDbLocal(pathlib.Path(sys.argv[1])) as emulator:
    if sys.argv[2] == "stalled":
        emulator.stall()
    print(emulator.pid, emulator.url, flush=True)
    signal.pause()
"""
LIST_TABLES = (
    b"POST / HTTP/1.1\r\nHost: localhost\r\nX-Amz-Target: DynamoDB_20120810.ListTables\r\n"
    b"Content-Type: application/x-amz-json-1.0\r\nContent-Length: 2\r\nAuthorization: AWS4-HMAC-SHA256"
    b" Credential=A/20261121/us-east-1/dynamodb/aws4_request, SignedHeaders=host, Signature=0\r\n\r\n{}"
)
ANSWERED = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture(scope="module")
def failing(emulator: DynamoDbLocal, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DynamoDbLocal]:
    """Run one that tests may cut and stall; each leaves it as it was. (Where one runs, another does.)"""
    with DynamoDbLocal(tmp_path_factory.mktemp("failing")) as running:
        yield running


def port_of(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port


def connected(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port_of(url)), timeout=10.0)


def refuses(url: str) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port_of(url))) != 0


def is_gone(pid: int) -> bool:
    """Whether a process has ended (one that nobody has asked for its status is still listed)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


# ------------------------------------------------ where it is


def test_it_is_reached_at_127_0_0_1_and_at_no_other_address_of_this_machine(emulator: DynamoDbLocal) -> None:
    arguments = [sys.executable, "-c", CALLER, str(port_of(emulator.url))]
    reached = subprocess.run(arguments, capture_output=True, text=True, timeout=30, check=True).stdout

    assert reached.split() == ["127.0.0.1"]


def test_it_has_a_network_in_which_there_is_only_loopback(emulator: DynamoDbLocal) -> None:
    here, there = Path("/proc/self"), Path(f"/proc/{emulator.pid}")
    routes = (there / "net" / "route").read_text().splitlines()[1:]
    addresses = [line.split() for line in (there / "net" / "if_inet6").read_text().splitlines()]

    assert (there / "ns" / "net").readlink() != (here / "ns" / "net").readlink()
    assert routes == []
    assert [fields[-1] for fields in addresses if fields[-1] != "lo"] == []


@pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's")
def test_a_program_does_not_start_in_a_network_that_leads_out() -> None:
    networks = Path("/sys/class/net")
    flags = {each.name: int((each / "flags").read_text(), 16) for each in networks.iterdir() if each.is_dir()}
    others = [name for _, name in socket.if_nameindex() if name != "lo" and flags[name] & 1]
    command = [sys.executable, "-m", "local.loopback", str(os.getpid()), "1", "true"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)

    refusal = f"loopback: {', '.join(others)} leads out of this network namespace\n"
    assert (ran.returncode, ran.stderr) == ((1, refusal) if others else (0, ""))


@pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's")
def test_a_program_does_not_start_when_its_parent_is_gone() -> None:
    command = [sys.executable, "-m", "local.loopback", "1", "1", "true"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)

    assert (ran.returncode, ran.stderr) == (1, "loopback: the parent is gone already\n")


# ------------------------------------------------ what it does


async def test_the_tables_fit_and_are_empty(emulator: DynamoDbLocal, tables: Tables) -> None:
    async with aioboto3.Session().client("dynamodb") as dynamodb:
        usage = await dynamodb.describe_table(TableName=tables.usage)
        invocations = await dynamodb.describe_table(TableName=tables.invocations)
        scanned = [await dynamodb.scan(TableName=name) for name in (tables.usage, tables.invocations)]

    assert USAGE.faults(tables.usage, usage["Table"]) == []
    assert INVOCATIONS.faults(tables.invocations, invocations["Table"]) == []
    assert [answer["Items"] for answer in scanned] == [[], []]


async def test_a_transaction_that_is_refused_shows_what_each_condition_met(tables: Tables) -> None:
    key = {"user_id": {"S": "ann"}, "period_id": {"S": "account"}}
    there = {**key, "tokens": {"N": "900"}}
    admit = {
        "TableName": tables.usage,
        "Key": key,
        "UpdateExpression": "ADD tokens :more",
        "ConditionExpression": "tokens < :room",
        "ExpressionAttributeValues": {":more": {"N": "200"}, ":room": {"N": "800"}},
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }
    record = {"TableName": tables.invocations, "Item": {"pk": {"S": "inv_1"}, "sk": {"S": "record"}}}
    async with aioboto3.Session().client("dynamodb") as dynamodb:
        await dynamodb.put_item(TableName=tables.usage, Item=there)
        with pytest.raises(ClientError) as refused:
            await dynamodb.transact_write_items(TransactItems=[{"Put": record}, {"Update": admit}])
        left = await dynamodb.scan(TableName=tables.invocations)

    assert refused.value.response["Error"]["Code"] == "TransactionCanceledException"
    reasons = refused.value.response["CancellationReasons"]
    assert [(reason["Code"], reason.get("Item")) for reason in reasons] == [
        ("None", None),
        ("ConditionalCheckFailed", there),
    ]
    assert left["Items"] == []


async def test_what_many_add_at_once_is_all_added(tables: Tables) -> None:
    key = {"user_id": {"S": "ann"}, "period_id": {"S": "account"}}

    async with aioboto3.Session().client("dynamodb") as dynamodb:

        async def admit() -> bool:
            try:
                await dynamodb.update_item(
                    TableName=tables.usage,
                    Key=key,
                    UpdateExpression="ADD tokens :more",
                    ConditionExpression="attribute_not_exists(tokens) OR tokens < :room",
                    ExpressionAttributeValues={":more": {"N": "10"}, ":room": {"N": "200"}},
                )
            except dynamodb.exceptions.ConditionalCheckFailedException:
                return False
            return True

        admitted = await asyncio.gather(*(admit() for _ in range(40)))
        kept = await dynamodb.get_item(TableName=tables.usage, Key=key, ConsistentRead=True)

    assert admitted.count(True) == 20
    assert kept["Item"]["tokens"] == {"N": "200"}


def test_a_refusal_has_dynamodbs_code(emulator: DynamoDbLocal) -> None:
    with pytest.raises(DynamoDbError) as refused:
        emulator.call("DescribeTable", {"TableName": "no-such-table"})

    assert refused.value.code == "ResourceNotFoundException"


# ------------------------------------------------ how it fails


def test_nobody_is_answered_while_it_is_stalled_and_everybody_after(failing: DynamoDbLocal) -> None:
    with connected(failing.url) as early:
        early.sendall(LIST_TABLES)
        before = early.recv(len(ANSWERED))
        failing.stall()
        with connected(failing.url) as late:
            late.sendall(LIST_TABLES)
            late.settimeout(0.2)
            with pytest.raises(TimeoutError):
                late.recv(1)
            late.settimeout(10.0)
            failing.resume()
            after = late.recv(len(ANSWERED))

    assert (before, after) == (ANSWERED, ANSWERED)


def test_a_cut_breaks_all_connections_and_loses_nothing_that_was_stored(failing: DynamoDbLocal) -> None:
    url = failing.url
    with Tables.created(failing) as kept, connected(url) as caller:
        failing.cut()
        try:
            rest = caller.recv(1)
        except ConnectionResetError:
            rest = b""
        refused = refuses(url)
        failing.mend()
        names = failing.call("ListTables", {})["TableNames"]

    assert (rest, refused, failing.url) == (b"", True, url)
    assert sorted(names) == sorted([kept.usage, kept.invocations])


def test_a_cut_ends_a_stall(failing: DynamoDbLocal) -> None:
    failing.stall()
    failing.cut()
    with pytest.raises(RuntimeError, match="cut off"):
        failing.stall()
    failing.mend()

    assert failing.call("ListTables", {}) == {"TableNames": []}


def test_a_cut_is_not_mended_when_the_emulator_itself_is_gone(
    tmp_path: Path, emulator: DynamoDbLocal
) -> None:
    with DynamoDbLocal(tmp_path) as own:
        own.cut()
        os.kill(own.pid, signal.SIGKILL)
        os.waitid(os.P_PID, own.pid, os.WEXITED | os.WNOWAIT)

        with pytest.raises(EmulatorDied):
            own.mend()


# ------------------------------------------------ how it ends


async def test_a_stack_has_its_own_and_leaves_only_logs(emulator: DynamoDbLocal, tmp_path: Path) -> None:
    async with Stack(tmp_path, catalog="", answers="scripts", services=0, tables=STACK_TABLES) as stack:
        url, pid = stack.emulator.url, stack.emulator.pid
        told = json.loads((tmp_path / "stack.json").read_text())
        names = await asyncio.to_thread(stack.emulator.call, "ListTables", {})

    assert names == {"TableNames": ["invocations", "usage"]}
    assert told["pids"]["dynamodb"] == pid
    assert (url != emulator.url, refuses(url), is_gone(pid)) == (True, True, True)
    assert names_in(tmp_path) == ["bedrock.log", "dynamodb.log", "issuer.log", "lock"]


async def test_a_stack_on_sqlite_has_no_emulator(tmp_path: Path) -> None:
    async with Stack(tmp_path, catalog="", answers="scripts", services=0) as stack:
        with pytest.raises(RuntimeError, match="SQLite"):
            _ = stack.emulator


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("state", ["running", "stalled"])
async def test_it_ends_when_the_process_that_started_it_is_killed(tmp_path: Path, state: str) -> None:
    supervisor = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SUPERVISOR, str(tmp_path), state),
        env={**clean_environ(os.environ, aws=False), "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert supervisor.stdout is not None
        pid, url = (await asyncio.wait_for(supervisor.stdout.readline(), 30)).decode().split()
    finally:
        supervisor.send_signal(signal.SIGKILL)
        await supervisor.communicate()

    async with asyncio.timeout(20):
        while not (is_gone(int(pid)) and refuses(url)):  # noqa: ASYNC110 - the end of another's child is no event
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("emulator")
def test_a_java_that_can_not_start_it_is_told_with_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = """echo 'openjdk version "17.0.15"' >&2"""
    program(tmp_path, "java", f'[ "$1" = -version ] && {version} && exit; echo "no memory"; exit 3')
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path), os.environ["PATH"]]))

    with pytest.raises(EmulatorDied) as died, DynamoDbLocal(tmp_path / "directory"):
        pass

    assert str(died.value).startswith("DynamoDB Local has ended; the end of ")
    assert "\n    no memory" in str(died.value)
    assert names_in(tmp_path / "directory") == ["dynamodb.log"]
