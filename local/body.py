"""The response to one ConverseStream call: frames in, HTTP chunks out in the pieces that a `Wire` asks for.

`bedrock` writes every answer through it. It keeps apart what was handed to it and what has been sent, so that
an account can say whether the peer was told its usage.
"""

from collections.abc import Mapping
from typing import Final

from local.http_server import Connection
from local.scripts import Wire

# An error names its type in a header, before a colon and an address; its body holds only the message.
_ERROR_TYPE: Final = "{}:http://internal.amazon.com/coral/com.amazon.bedrock/"


class CutHere(Exception):
    """The connection was dropped because the script says so; nothing more can be sent."""


class Body:
    """One response. Set `wire` before the first frame."""

    def __init__(self, connection: Connection, request_id: str) -> None:
        self._connection = connection
        self._request_id = request_id
        self._held: list[bytes] = []
        self._accepted_bytes = self._sent_bytes = 0
        self._report_ends: int | None = None
        self.wire = Wire()
        self.started = False

    @property
    def reported(self) -> bool:
        """Whether all bytes of the frame that reports the usage have been sent."""
        return self._report_ends is not None and self._sent_bytes >= self._report_ends

    async def refuse(
        self, status: int, error: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer with an error instead of a stream."""
        await refuse(self._connection, self._request_id, status, error, message, headers)

    async def start(self) -> None:
        """Send the head, once."""
        if self.started:
            return
        self.started = True
        headers = {"Content-Type": "application/vnd.amazon.eventstream", "x-amzn-RequestId": self._request_id}
        await self._connection.start(headers, close=not self.wire.keep_alive)
        await self._cut_if_due()

    async def frame(self, frame: bytes, *, reports_usage: bool = False) -> None:
        """Take one frame; it is sent when the wire's number of frames is reached, or at the next `flush`."""
        self._held.append(frame)
        self._accepted_bytes += len(frame)
        if reports_usage:
            self._report_ends = self._accepted_bytes
        if len(self._held) >= self.wire.frames_per_write:
            await self.flush()

    async def flush(self) -> None:
        """Send what is held.

        Raises:
            CutHere: The wire cuts in these bytes, or after them.
        """
        held, self._held = b"".join(self._held), []
        for piece in self.wire.pieces(self._sent_bytes, held):
            await self.start()
            await self._connection.chunk(piece)
            self._sent_bytes += len(piece)
            await self._cut_if_due()

    async def finish(self) -> None:
        """Send what is held and end the body cleanly."""
        await self.flush()
        await self.start()
        await self._connection.finish()

    async def cut(self, *, reset: bool) -> None:
        """Send what is held and drop the connection.

        Raises:
            CutHere: Always.
        """
        await self.flush()
        self._connection.cut(reset=reset)
        raise CutHere

    async def _cut_if_due(self) -> None:
        if self._sent_bytes == self.wire.cut_after_bytes:
            # By now the bytes are in the kernel or in the transport's buffer. A reset throws both away, so
            # that the peer may see fewer bytes, never more: as with a real one.
            self._connection.cut(reset=self.wire.cut_by_reset)
            raise CutHere


async def refuse(
    connection: Connection,
    request_id: str,
    status: int,
    error: str,
    message: str,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Answer as AWS does when a call fails before it begins."""
    named = {"x-amzn-RequestId": request_id, "x-amzn-ErrorType": _ERROR_TYPE.format(error)}
    await connection.answer(status, {"message": message}, {**named, **(headers or {})})
