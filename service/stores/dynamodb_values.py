"""Values as DynamoDB's JSON, and the expressions that a request makes of them. Pure.

`dynamodb_client` and `dynamodb_tables` call it. An expression says `#name` for an attribute and `:name` for a
value; what is the same each time that it is used (its names, what is asked for with it) is made once.

    pack({"pk": "inv_1", "seq": 7})      {"pk": {"S": "inv_1"}, "seq": {"N": "7"}}
    expressions("UpdateExpression", "SET #seq = :seq", values={"seq": 7})
                                         {"UpdateExpression": "SET #seq = :seq",
                                          "ExpressionAttributeNames": {"#seq": "seq"},
                                          "ExpressionAttributeValues": {":seq": {"N": "7"}}}
"""

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import NoneType
from typing import Any, Final

Item = dict[str, Any]

_NAME: Final = re.compile(r"#(\w+)")


def pack(item: Mapping[str, Any]) -> dict[str, Any]:
    """Write an item as DynamoDB's JSON; an attribute that is None is left out.

    Raises:
        TypeError: An item has no such values.
    """
    return {name: _PACKED[type(value)](value) for name, value in item.items() if value is not None}


class _Packed(dict[type, Callable[[Any], dict[str, Any]]]):
    def __missing__(self, kind: type) -> Callable[[Any], dict[str, Any]]:
        """Return how those are written that a type is one of: named tuples, say."""
        for known in (str, bytes, tuple, list, dict):
            if issubclass(kind, known):
                return self[known]
        raise TypeError(f"no value of an item: {kind.__name__}")


_PACKED: Final[_Packed] = _Packed(
    {
        str: lambda text: {"S": text},
        int: lambda number: {"N": str(number)},
        list: lambda each: {"L": [_PACKED[type(value)](value) for value in each]},
        tuple: lambda each: {"L": [_PACKED[type(value)](value) for value in each]},
        dict: lambda named: {"M": {name: _PACKED[type(value)](value) for name, value in named.items()}},
        bytes: lambda content: {"B": content},
        bool: lambda truth: {"BOOL": truth},
        NoneType: lambda _: {"NULL": True},
    }
)
"""How a value of each type is written: a table, since the shortest invocation has 120 of them."""


def unpack(item: Mapping[str, Any]) -> Item:
    """Read an item from DynamoDB's JSON."""
    return {name: unpack_value(value) for name, value in item.items()}


def unpack_value(value: Mapping[str, Any]) -> Any:
    """Read a value from DynamoDB's JSON; numbers of ours are whole."""
    ((kind, content),) = value.items()
    if kind == "N":
        return int(content)
    if kind == "M":
        return unpack(content)
    if kind == "L":
        return [unpack_value(each) for each in content]
    return None if kind == "NULL" else content


def expressions(
    kind: str = "",
    text: str = "",
    condition: str | None = None,
    values: Mapping[str, Any] | None = None,
    names: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return a request's expression and condition, with the names and values that they use."""
    made = _form(kind, text, condition).copy()
    if names:
        own = {f"#{name}": meant for name, meant in names.items()}
        made["ExpressionAttributeNames"] = made["ExpressionAttributeNames"] | own
    if values:
        made["ExpressionAttributeValues"] = {
            f":{name}": _PACKED[type(value)](value) for name, value in values.items()
        }
    return made


@lru_cache(maxsize=256)  # one for each form of a decision
def _form(kind: str, text: str, condition: str | None) -> dict[str, Any]:
    """Return what does not change from one use of expressions to the next; shared, so not to be changed."""
    form: dict[str, Any] = {kind: text} if kind else {}
    if condition is not None:
        form["ConditionExpression"] = condition
        form["ReturnValuesOnConditionCheckFailure"] = "ALL_OLD"
    used = {f"#{name}": name for name in _NAME.findall(f"{text} {condition or ''}")}
    if used:
        form["ExpressionAttributeNames"] = used
    return form
