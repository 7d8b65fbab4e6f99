"""The body of a submit request: what is not strict JSON is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.submitting import fault, parsed

NOT_JSON = (
    "The body is not valid JSON: the parser stopped at line {}, column {}. "
    "Send UTF-8 without a byte order mark, NaN, Infinity or unpaired surrogates, nested at most 64 deep."
)
TOO_MANY = "The body has too many members and list items: send fewer messages."


@pytest.mark.promise("bad-input-refused")
@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", NOT_JSON.format(1, 1)),
        (b'{\n"prompt": oops}', NOT_JSON.format(2, 11)),
        (b'{"prompt": "x",}', NOT_JSON.format(1, 15)),
        (b'\xef\xbb\xbf{"prompt": "x"}', NOT_JSON.format(1, 1)),
        (b'{"maxTokens": NaN}', NOT_JSON.format(1, 15)),
        (b'{"maxTokens": 1e999}', NOT_JSON.format(1, 15)),
        (rb'{"prompt": "\ud800"}', NOT_JSON.format(1, 13)),
        (b'{"prompt": "\x00"}', NOT_JSON.format(1, 13)),
        (b'{"prompt": "\xff"}', "The body is not UTF-8: byte 12 can't be decoded."),
        (b'{"prompt": "\xed\xa0\x80"}', "The body is not UTF-8: byte 12 can't be decoded."),
        ('{"prompt": "x"}'.encode("utf-16"), "The body is not UTF-8: byte 0 can't be decoded."),
        (b"[" * 20_000, NOT_JSON.format(1, 1026)),
        (b"[" * 10_000_000, TOO_MANY),
        (b'{"prompt":' * 10_000 + b"1" + b"}" * 10_000, NOT_JSON.format(1, 10_242)),
        (b'{"prompt":' + b"[" * 65 + b"]" * 65 + b"}", "/prompt must be a string that is not blank."),
        (b"[" + b"[]," * 30_000 + b"1]", TOO_MANY),
        (b"[" + b'"",' * 3_000_000 + b"1]", TOO_MANY),
        (b'["\\\\",' + b"[]," * 30_000 + b"1]", TOO_MANY),
        (b"[]", "The body must be an object."),
        (b"null", "The body must be an object."),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, bytes) else "",
)
def test_a_body_that_is_not_strict_json_is_refused(body: bytes, detail: str) -> None:
    assert fault(body) == detail


@pytest.mark.promise("bad-input-refused")
@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"prompt": "a", "prompt": "b"}', "prompt"),
        (rb'{"prompt": "a", "pr\u006fmpt": "b"}', "prompt"),
        (rb'{"prompt": "a:b\u003a\u003A", "maxTokens": 1, "maxTokens": 2}', "maxTokens"),
        (b'{"messages":[{"role":"user","role":"user","content":[{"text":"a"}]}]}', "role"),
        (b'{"prompt": "a", "requestMetadata": {"k/1": "v", "k/1": "v"}}', "k~11"),
    ],
)
def test_a_member_given_twice_is_refused_by_name(body: bytes, name: str) -> None:
    assert fault(body) == f"The member {name} is there twice in the same object: send it once."


def test_a_member_hidden_behind_a_second_one_is_found_however_deep_it_is() -> None:
    body = b'{"prompt": ' + b"[" * 1000 + b"]" * 1000 + b', "prompt": "x"}'

    assert fault(body).endswith("is there twice in the same object: send it once.")


names = st.sampled_from(["prompt", "maxTokens", "requestMetadata"])


@given(given_names=st.lists(names, max_size=5), text=st.text(alphabet=':\\"{a', min_size=1))
def test_a_name_is_refused_exactly_if_it_is_given_twice(given_names: list[str], text: str) -> None:
    values = {"prompt": text, "maxTokens": 7, "requestMetadata": {"a:b": ":"}}
    members = [f"{json.dumps(name)}: {json.dumps(values[name])}" for name in ["prompt", *given_names]]
    body = ("{" + ", ".join(members) + "}").encode()

    if len(set(given_names) | {"prompt"}) == len(members):
        assert parsed(body).messages == ({"role": "user", "content": [{"text": text}]},)
    else:
        assert fault(body).endswith("is there twice in the same object: send it once.")
