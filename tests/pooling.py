"""Exchanges of a `ConnectionPool` with a scripted server."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.models.connection import Exchange, OnHead
from service.models.pool import ConnectionPool
from tests.scripted_http import ScriptedServer, head, sized

OK = sized(200, b"Hello")
CHUNKED = head(transfer_encoding="chunked")


@asynccontextmanager
async def pooling(
    server: ScriptedServer, *, limit: int = 10, tls: ssl.SSLContext | None = None
) -> AsyncIterator[ConnectionPool]:
    pool = ConnectionPool("127.0.0.1", server.port, tls=tls, limit=limit, silence_s=900.0)
    try:
        yield pool
    finally:
        await pool.aclose()


async def begin(pool: ConnectionPool, body: bytes = b"{}", on_head: OnHead | None = None) -> Exchange:
    headers = {"Host": "x", "Content-Length": str(len(body))}
    return await pool.begin("POST", "/model/x", headers, body, on_head or (lambda *_: None))


async def ask(pool: ConnectionPool, body: bytes = b"{}", on_head: OnHead | None = None) -> tuple[int, bytes]:
    """Make one exchange from beginning to end."""
    exchange = await begin(pool, body, on_head)
    try:
        await exchange.head()
        return exchange.status, await exchange.finish()
    finally:
        exchange.close()
