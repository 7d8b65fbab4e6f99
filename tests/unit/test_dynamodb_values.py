"""Values of items as DynamoDB's JSON, and back."""

import pytest

from service.stores.dynamodb_client import pack, pack_value, unpack


def test_an_item_comes_back_as_it_was_but_for_what_is_none() -> None:
    item = {
        "pk": "inv_1",
        "n": -12,
        "done": True,
        "blob": b"bytes",
        "attempts": [[1, None, 3], [2, "lost", None]],
        "holds": {"1.1": 100},
        "session_id": None,
    }

    packed = pack(item)

    assert packed == {
        "pk": {"S": "inv_1"},
        "n": {"N": "-12"},
        "done": {"BOOL": True},
        "blob": {"B": b"bytes"},
        "attempts": {
            "L": [
                {"L": [{"N": "1"}, {"NULL": True}, {"N": "3"}]},
                {"L": [{"N": "2"}, {"S": "lost"}, {"NULL": True}]},
            ]
        },
        "holds": {"M": {"1.1": {"N": "100"}}},
    }
    assert unpack(packed) == {name: value for name, value in item.items() if value is not None}


def test_what_is_no_value_of_an_item_is_not_written() -> None:
    with pytest.raises(TypeError, match="float"):
        pack_value([1.5])
