"""How events lie in a store: whatever is packed is the same again, and smaller where that is possible."""

import random
import zlib
from itertools import pairwise

import pytest

from service.events import Block
from service.stores.packing import RAW, ZLIB, compress, expand, pack, unpack

DICE = random.Random(5)  # noqa: S311 - not a secret


@pytest.mark.parametrize("size_bytes", [100, 8 * 1024, 8 * 1024 + 1, 300 * 1024])
def test_what_is_compressed_is_the_same_again_whatever_its_size(size_bytes: int) -> None:
    text = (b"the water runs along the race, " * (size_bytes // 31 + 1))[:size_bytes]

    codec, packed = compress(text)

    assert codec == ZLIB
    assert len(packed) < len(text)
    assert expand(codec, packed) == text
    assert zlib.decompress(packed) == text  # whoever reads the table needs no settings


def test_what_would_not_get_smaller_stays_as_it_is() -> None:
    noise = DICE.randbytes(500)

    assert compress(noise) == (RAW, noise)
    assert compress(b"") == (RAW, b"")


@pytest.mark.parametrize("piece_bytes", [1, 40, 1000, 300 * 1024])
def test_pieces_of_a_block_have_its_events_in_order(piece_bytes: int) -> None:
    block = Block(2, 7, tuple(b"x" * DICE.randrange(1, 90) for _ in range(50)))

    pieces = list(pack(block, piece_bytes))

    assert [event for piece, codec, blob in pieces for event in unpack(codec, blob)] == list(block.events)
    assert pieces[0][0].first_seq == 7
    assert all(after.first_seq == before.last.seq + 1 for (before, *_), (after, *_) in pairwise(pieces))
    assert all(
        len(piece.events) == 1 or len(b"\n".join(piece.events)) <= piece_bytes for piece, _, _ in pieces
    )
