"""Items of the invocations table: what lies in them, and how large they are."""

import pytest

from service.events import Block
from service.stores.dynamodb_items import event_items, read_block
from service.stores.dynamodb_values import pack
from service.stores.packing import RAW, ZLIB
from tests.dynamodb_meter import WRITE_BYTES, size_bytes

INVOCATION = "inv_01M80GA05KPN6E0X2AREQF5BBB"


@pytest.mark.parametrize(("count", "codec"), [(1, RAW), (7, RAW), (8, ZLIB), (200, ZLIB)])
def test_events_are_compressed_where_that_can_save_a_write_unit(count: int, codec: int) -> None:
    block = Block(9_999, 999_999_000, (b"the water runs along the race, " * 3 + b"to our wheel",) * count)

    (item,) = event_items(INVOCATION, block, 1_829_959_834)

    assert item["codec"] == codec
    assert read_block(item) == block
    if codec == RAW:
        assert size_bytes(pack(item)) <= WRITE_BYTES
