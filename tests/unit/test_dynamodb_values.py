"""Values of items as DynamoDB's JSON, and back."""

import pytest

from service.invocations import State, Usage
from service.stores.dynamodb_values import expressions, pack, unpack


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
        pack({"seconds": [1.5]})


def test_a_value_of_a_narrower_type_is_written_as_what_it_is() -> None:
    assert pack({"used": Usage(1, 2)}) == {
        "used": {"L": [{"N": "1"}, {"N": "2"}, {"N": "0"}, {"N": "0"}, {"BOOL": False}]}
    }
    assert pack({"state": State.RUNNING}) == {"state": {"S": "running"}}


def test_expressions_come_with_the_names_and_values_that_they_use() -> None:
    change, condition = "SET #ledger.#line = :line", "attribute_exists(#pk)"

    first = expressions("UpdateExpression", change, condition, {"line": 7}, {"line": "1.1"})
    again = expressions("UpdateExpression", change, condition, {"line": 8}, {"line": "2.1"})

    assert first == {
        "UpdateExpression": change,
        "ConditionExpression": condition,
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        "ExpressionAttributeNames": {"#ledger": "ledger", "#line": "1.1", "#pk": "pk"},
        "ExpressionAttributeValues": {":line": {"N": "7"}},
    }
    assert again["ExpressionAttributeNames"]["#line"] == "2.1"
    assert expressions(condition="attribute_exists(#pk)")["ExpressionAttributeNames"] == {"#pk": "pk"}
    assert expressions() == {}
