"""A DynamoDB that answers at once and keeps nothing: `python -m bench.canned --port N`.

`subjects` starts it on the client's core in place of DynamoDB Local, which manages 91 invocations a second:
at that pace each call of the store also pays for waking its process up, and the rate is the emulator's. It
checks neither signatures nor conditions. A write is done, as far as its caller can tell; a read finds
nothing, but for what a process asks about its own work (the fence of a first attempt), and the tables are
those of `dynamodb_tables`. So only a process that remembers what it has written runs on it. That the store
decides rightly is not seen here: the tests run on DynamoDB Local.

The heads are DynamoDB's, checksum and request id included: parsing them is in the figures.
"""

import argparse
import asyncio
import json
from collections.abc import Callable
from typing import Any, cast
from zlib import crc32

import httptools
import orjson
import uvloop

from service.stores.dynamodb_tables import INVOCATIONS, USAGE

TABLES = {"usage": USAGE, "invocations": INVOCATIONS}
_FIRST_FENCE = {"N": "1"}
_HEAD = (
    b"HTTP/1.1 200 OK\r\nServer: Server\r\nDate: Sat, 21 Nov 2026 22:00:00 GMT\r\n"
    b"Content-Type: application/x-amz-json-1.0\r\nContent-Length: %d\r\nConnection: keep-alive\r\n"
    b"x-amzn-RequestId: 0AAAAAAAAAAAAAAAAAAAAAAAAAVV4KQNSO5AEMVJF66Q9ASUAAJG\r\nx-amz-crc32: %d\r\n\r\n"
)


def _sized(answer: object) -> bytes:
    body = json.dumps(answer, separators=(",", ":")).encode()
    return _HEAD % (len(body), crc32(body)) + body


def _described(asked: dict[str, Any]) -> object:
    name = asked["TableName"]
    return {"Table": TABLES[name].definition(name) | {"TableStatus": "ACTIVE"}}


def _fences(asked: dict[str, Any]) -> object:
    """The records of a BatchGetItem, as their first attempt left them, as far as it is asked for."""
    found = {
        table: [{**key, "fence": _FIRST_FENCE} for key in of_table["Keys"]]
        for table, of_table in asked["RequestItems"].items()
    }
    return {"Responses": found, "UnprocessedKeys": {}}


_READ: dict[str, Callable[[dict[str, Any]], object]] = {"DescribeTable": _described, "BatchGetItem": _fences}
"""What an answer depends on is read; nothing else is."""
_CANNED = {
    "Query": _sized({"Count": 0, "Items": [], "ScannedCount": 0}),
    "BatchWriteItem": _sized({"UnprocessedItems": {}}),
}
_DONE = _sized({})


class Conversation(asyncio.Protocol):
    """One connection: a request, its answer, the next request."""

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self._operation = ""
        self._body: list[bytes] = []
        self.on_body = self._body.append  # what httptools calls
        self._parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name == b"x-amz-target":
            self._operation = value.decode("ascii").rpartition(".")[2]

    def on_message_complete(self) -> None:
        read = _READ.get(self._operation)
        if read is not None:
            answer = _sized(read(orjson.loads(b"".join(self._body))))
        else:
            answer = _CANNED.get(self._operation, _DONE)
        self._body.clear()
        self._transport.write(answer)


async def serve(port: int) -> None:
    """Serve until cancelled."""
    server = await asyncio.get_running_loop().create_server(Conversation, "127.0.0.1", port, backlog=1024)
    async with server:
        await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.canned", description="A DynamoDB that says yes.")
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
