"""An HTTP server that sends the bytes a test tells it to, and the smallest encoder of event streams.

The script is a coroutine over one accepted connection: it reads requests, sends any bytes, waits for
barriers, and sees the other side hang up. It knows no HTTP but how long a request is.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from zlib import crc32

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

END = b"0\r\n\r\n"
"""The end of a chunked body."""


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it arrived; header names as they were sent."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


class Peer:
    """One accepted connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def request(self) -> Received:
        """Read the next request; raises IncompleteReadError if the other side hangs up instead."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head[:-4].split("\r\n")
        headers = {name: value for name, _, value in (line.partition(": ") for line in lines)}
        method, target, _ = first.split(" ")
        length = int(next(value for name, value in headers.items() if name.lower() == "content-length"))
        return Received(method, target, headers, await self._reader.readexactly(length))

    async def send(self, *parts: bytes) -> None:
        """Send each part so that the other side reads it before the next is sent (they share a loop)."""
        for part in parts:
            self._writer.write(part)
            await self._writer.drain()
            for _ in range(2):
                await asyncio.sleep(0)

    async def gone(self) -> None:
        """Wait until the other side has closed the connection."""
        try:
            while await self._reader.read(65536):
                pass
        except ConnectionError:
            pass

    def close(self) -> None:
        """Hang up."""
        self._writer.close()


Script = Callable[[Peer], Awaitable[None]]


@dataclass
class ScriptedServer:
    """A listening server; `connections` and `requests` are what it got."""

    port: int = 0
    connections: int = 0
    requests: list[Received] = field(default_factory=list)
    scheme: str = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"


@asynccontextmanager
async def scripted(script: Script, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[ScriptedServer]:
    """Play the script on every connection; what goes wrong in it is raised at the end."""
    server = ScriptedServer(scheme="https" if tls else "http")
    plays: set[asyncio.Task[None]] = set()

    class Recording(Peer):
        async def request(self) -> Received:
            received = await super().request()
            server.requests.append(received)
            return received

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        try:
            await script(Recording(reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the other side has hung up: the end of a connection that is kept alive
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        plays.add(asyncio.create_task(play(reader, writer)))

    listener = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        done = [task for task in plays if task.done()]
        for task in plays:
            task.cancel()
        await asyncio.gather(*plays, return_exceptions=True)
        await listener.wait_closed()
    for task in done:
        task.result()


def replies(*responses: bytes | Iterable[bytes]) -> Script:
    """Answer the requests of each connection with these; parts of a response are sent one by one."""

    async def script(peer: Peer) -> None:
        for response in responses:
            await peer.request()
            await peer.send(*([response] if isinstance(response, bytes) else response))
        await peer.gone()

    return script


def head(status: int = 200, **headers: str) -> bytes:
    """Return a response's head; `_` in names stands for `-`."""
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def chunk(data: bytes) -> bytes:
    """Return one chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def sized(status: int, body: bytes, **headers: str) -> bytes:
    """Return a whole response with a Content-Length."""
    return head(status, content_length=str(len(body)), **headers) + body


def message(headers: dict[str, str], payload: bytes) -> bytes:
    """Encode one message of an event stream."""
    block = b"".join(
        bytes([len(name)]) + name.encode() + b"\x07" + len(value).to_bytes(2, "big") + value.encode()
        for name, value in headers.items()
    )
    return message_of_block(block, payload)


def message_of_block(block: bytes, payload: bytes) -> bytes:
    """Encode one message with any bytes for its headers."""
    prelude = (16 + len(block) + len(payload)).to_bytes(4, "big") + len(block).to_bytes(4, "big")
    prelude += crc32(prelude).to_bytes(4, "big")
    return prelude + block + payload + crc32(prelude + block + payload).to_bytes(4, "big")


def event(event_type: str, payload: bytes) -> bytes:
    """Encode one event as Bedrock does."""
    return message(
        {":event-type": event_type, ":content-type": "application/json", ":message-type": "event"}, payload
    )


def exception(exception_type: str, payload: dict[str, Any]) -> bytes:
    """Encode one modelled exception as Bedrock does."""
    headers = {
        ":exception-type": exception_type,
        ":content-type": "application/json",
        ":message-type": "exception",
    }
    return message(headers, json.dumps(payload).encode())


def certify(folder: Path, name: str = "127.0.0.1") -> tuple[ssl.SSLContext, Path]:
    """Make a CA and a server certificate; return the server's context and the CA's file."""
    now = datetime.now(UTC)
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca_name, subject = (
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, each)]) for each in ("test CA", name)
    )
    try:
        alternative: x509.GeneralName = x509.IPAddress(ip_address(name))
    except ValueError:
        alternative = x509.DNSName(name)

    def certificate(
        of: x509.Name, public_key: ec.EllipticCurvePublicKey, extension: x509.ExtensionType, critical: bool
    ) -> bytes:
        builder = x509.CertificateBuilder(
            ca_name, of, public_key, x509.random_serial_number(), now, now + timedelta(days=1)
        )
        signed = builder.add_extension(extension, critical=critical).sign(ca_key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)

    ca_file, server_file = folder / "ca.pem", folder / "server.pem"
    ca_file.write_bytes(
        certificate(ca_name, ca_key.public_key(), x509.BasicConstraints(ca=True, path_length=0), True)
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    server_file.write_bytes(
        private + certificate(subject, key.public_key(), x509.SubjectAlternativeName([alternative]), False)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server_file)
    return context, ca_file
