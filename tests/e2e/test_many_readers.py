"""A thousand connections to one real process are reset at the same moment."""

import asyncio
import resource
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest

from local.answers import answer
from local.scripts import Wait
from local.stack import Stack
from tests.e2e.client import CATALOG, WAIT_S, Caller, calling, ended

READERS: Final = 1000
SPARE_FDS: Final = 200
MANY: Final = CATALOG.replace("[service]", f"[service]\nreaders_per_principal = {2 * READERS}")
WORDS: Final = [f"word{number} " for number in range(20)]
RESET: Final = struct.pack("ii", 1, 0)  # lingers 0 s: closing sends RST


@pytest.fixture
def readers() -> Iterator[int]:
    """Allow as many open files as this machine lets us, also to the service; gives how many readers fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = READERS + SPARE_FDS
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
    yield min(READERS, max(soft, allowed) - SPARE_FDS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Connection:
    """A reader on a socket of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, caller: Caller, location: str) -> "Connection":
        address = urlsplit(caller.url)
        connection = cls(*await asyncio.open_connection(address.hostname, address.port))
        connection._writer.write(
            f"GET {location}/events HTTP/1.1\r\nHost: {address.netloc}\r\n"
            f"Authorization: Bearer {caller.token}\r\n\r\n".encode()
        )
        await connection._reader.readuntil(b"word3")
        return connection

    def reset(self) -> None:
        """Leave without a word."""
        peer: Any = self._writer.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._writer.transport.abort()


def open_files(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists the open files of a process")
@pytest.mark.allowed_skip("Linux only")
@pytest.mark.promise("hang-up-hurts-nobody", "leaving-readers-leave-nothing")
async def test_a_thousand_readers_that_are_reset_at_once_leave_no_open_file(
    tmp_path: Path, readers: int
) -> None:
    async with (
        Stack(tmp_path, catalog=MANY, answers="scripts", gateway=None) as stack,
        calling(stack) as ann,
    ):
        await stack.bedrock.script("writer-model", answer(deltas=WORDS).insert(6, Wait("left")))
        service = stack.services[0]
        async with ann.submit() as first:
            await first.until(b"word3")
            await ann.get("/ping")
            before = open_files(service.pid)
            async with asyncio.timeout(WAIT_S):
                opening = [Connection.open(ann, first.location) for _ in range(readers)]
                connections = await asyncio.gather(*opening)
            during = open_files(service.pid)
            for connection in connections:
                connection.reset()
            async with asyncio.timeout(WAIT_S):
                while open_files(service.pid) > before:
                    await ann.get("/ping")
            async with ann.follow(first.location) as later:
                await later.until(b"word3")
                await stack.bedrock.release("left")
                assert without_heartbeats(await later.whole()) == without_heartbeats(await first.whole())
        record = await ended(ann, first.location)
        ends = [line for line in service.log().splitlines() if '"end":"disconnect"' in line]

    assert during > readers
    assert len(ends) == readers
    assert '"level":"ERROR"' not in service.log()
    assert (record["state"], record["result"]["text"]) == ("completed", "".join(WORDS))


def without_heartbeats(body: bytes) -> bytes:
    return b"\n".join(line for line in body.split(b"\n") if not line.startswith(b":"))
