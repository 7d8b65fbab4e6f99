"""How events lie in a store: pieces of a bounded size, joined, compressed where that is smaller. Pure.

The stores' modules of event logs call it.
"""

import zlib
from collections.abc import Iterator
from typing import Final

from service.events import Block, join, split

RAW: Final = 0
ZLIB: Final = 1
# By default deflate gets 256 KB and clears them, which is five times the work of compressing a second of
# deltas. These ask for 96 KB, and a window of 8 KB; any zlib expands the result:
# https://www.zlib.net/manual.html#Advanced
_SMALL_BYTES: Final = 8 * 1024
_SMALL_WINDOW_BITS: Final = 13
_SMALL_MEMORY: Final = 7


def pack(block: Block, piece_bytes: int, compress_from_bytes: int = 0) -> Iterator[tuple[Block, int, bytes]]:
    """Cut a block into pieces of at most so many bytes, and give each with its codec and its blob.

    An event that alone is longer is a piece of its own.
    """
    for piece in _pieces(block, piece_bytes):
        yield piece, *compress(join(piece.events), compress_from_bytes)


def compress(blob: bytes, from_bytes: int = 0) -> tuple[int, bytes]:
    """Compress where that is smaller; returns the codec and the bytes."""
    if len(blob) >= from_bytes:
        compressed = _deflated(blob)
        if len(compressed) < len(blob):
            return ZLIB, compressed
    return RAW, blob


def _deflated(blob: bytes) -> bytes:
    if len(blob) > _SMALL_BYTES:
        return zlib.compress(blob, level=1)
    deflate = zlib.compressobj(6, zlib.DEFLATED, _SMALL_WINDOW_BITS, _SMALL_MEMORY)
    return deflate.compress(blob) + deflate.flush()


def expand(codec: int, blob: bytes) -> bytes:
    """Undo `compress`."""
    return zlib.decompress(blob) if codec == ZLIB else blob


def unpack(codec: int, blob: bytes) -> tuple[bytes, ...]:
    """Return the events of a blob."""
    return split(expand(codec, blob))


def _pieces(block: Block, piece_bytes: int) -> Iterator[Block]:
    if block.size_bytes + len(block.events) <= piece_bytes:  # joined it has a byte between two events
        yield block
        return
    begin = 0
    size_bytes = 0
    for index, event in enumerate(block.events):
        if size_bytes and size_bytes + 1 + len(event) > piece_bytes:
            yield Block(block.attempt, block.first_seq + begin, block.events[begin:index])
            begin, size_bytes = index, 0
        size_bytes += len(event) + (index > begin)
    yield Block(block.attempt, block.first_seq + begin, block.events[begin:])
