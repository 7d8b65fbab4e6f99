"""The body of a submit request: what is taken, and the sentence that each fault gets."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.config import RuntimeConfig
from service.errors import InvalidRequest
from service.submission import Submission, parse_submission

RUNTIME = RuntimeConfig("writer", "converse", max_output_tokens=4096)
PNG = base64.b64encode(b"\x89PNG").decode()


def parsed(body: Any) -> Submission:
    return parse_submission(body if isinstance(body, bytes) else json.dumps(body).encode(), RUNTIME)


def fault(body: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parsed(body)
    return caught.value.detail


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def image(**changes: Any) -> dict[str, Any]:
    return {"image": {"format": "png", "source": {"bytes": PNG}} | changes}


def document(**changes: Any) -> dict[str, Any]:
    return {"document": {"format": "pdf", "name": "Report", "source": {"bytes": PNG}} | changes}


TEXT = {"text": "Hello"}

# ---------------------------------------------------------------- what is taken


def test_a_prompt_is_a_conversation_of_one_message() -> None:
    assert parsed({"prompt": " Hello "}) == Submission(
        messages=({"role": "user", "content": [{"text": " Hello "}]},), max_tokens=4096, request_metadata={}
    )


def test_a_conversation_passes_as_it_came() -> None:
    messages = [
        user(TEXT, image(), *(image(format=kind) for kind in ("jpeg", "gif", "webp"))),
        assistant({"text": "Hi"}),
        user(document(name="Q3 report (final) [2]-x"), TEXT),
    ]
    metadata = {"team": "search", "cost center": ""}

    assert parsed({"messages": messages, "maxTokens": 1, "requestMetadata": metadata}) == Submission(
        messages=tuple(messages), max_tokens=1, request_metadata=metadata
    )


@pytest.mark.parametrize("kind", ["pdf", "csv", "doc", "docx", "xls", "xlsx", "html", "txt", "md"])
def test_every_document_format_of_bedrock_is_taken(kind: str) -> None:
    messages = [user(TEXT, document(format=kind))]

    assert parsed({"messages": messages}).messages == tuple(messages)


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "x", "maxTokens": 4096},
        {"prompt": "x", "requestMetadata": {f"k{n}": "v" * 256 for n in range(16)}},
        {"prompt": "x", "requestMetadata": {"k" * 256: " \t:_@$#=/+,-.azAZ09"}},
        {"messages": [user(*[image()] * 20)]},
        {"messages": [user(TEXT, *[document(name="n" * 200)] * 5)]},
        {"messages": [user(image(source={"bytes": "A" * 5_242_880}))]},
        {"messages": [user(TEXT, document(source={"bytes": "A" * 6_291_456}))]},
    ],
)
def test_the_limits_themselves_are_taken(body: Any) -> None:
    assert parsed(body).messages


@given(text=st.text().filter(str.strip), escaped=st.booleans())
def test_any_text_that_is_not_blank_arrives_unchanged(text: str, escaped: bool) -> None:
    body = json.dumps({"prompt": text}, ensure_ascii=escaped).encode()

    assert parsed(body).messages == ({"role": "user", "content": [{"text": text}]},)


@pytest.mark.parametrize(
    "text",
    [
        '"maxTokens": 1, "maxTokens": 2',
        "a\\u003ab \\\\",
        '\\"[{,',
        "[" * 30_000,
        ',"' * 30_000,
        '\\"' * 60_000,
    ],
)
def test_what_looks_like_json_inside_a_string_is_text(text: str) -> None:
    body = json.dumps({"prompt": text, "maxTokens": 5}).encode()

    assert parsed(body).messages == ({"role": "user", "content": [{"text": text}]},)


def test_an_escaped_colon_is_no_second_member() -> None:
    body = rb'{"prompt": "a\u003ab\u003Ac", "maxTokens": 5}'

    assert parsed(body).messages == ({"role": "user", "content": [{"text": "a:b:c"}]},)


def test_a_long_conversation_is_taken() -> None:
    messages = [assistant(TEXT) if n % 2 else user(TEXT) for n in range(4999)]

    assert len(parsed({"messages": messages}).messages) == 4999


# ---------------------------------------------------------------- what is refused: JSON

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


# ---------------------------------------------------------------- what is refused: members

ONE_OF_TWO = "Send exactly one of /prompt (text) and /messages (a conversation)."
TOKENS = "/maxTokens must be a whole number from 1 to 4096."
KNOWN = "the members known there are prompt, messages, maxTokens, requestMetadata."
PAIRS = "/requestMetadata must be an object with 1 to 16 members."
CHARACTERS = "256 letters, digits, white space and : _ @ $ # = / + , - ."


@pytest.mark.promise("bad-input-refused")
@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({}, ONE_OF_TWO),
        ({"prompt": "x", "messages": [user(TEXT)]}, ONE_OF_TWO),
        ({"prompt": ""}, "/prompt must be a string that is not blank."),
        ({"prompt": " \n\u2003"}, "/prompt must be a string that is not blank."),
        ({"prompt": None}, "/prompt must be a string that is not blank."),
        (
            {"prompt": "x", "max_tokens": 5},
            f"/max_tokens is not accepted: {KNOWN}",
        ),
        (
            {"a/b~c" + "d" * 100: 1},
            f"/a~1b~0c{'d' * 59}... is not accepted: {KNOWN}",
        ),
        ({"prompt": "x", "maxTokens": 0}, TOKENS),
        ({"prompt": "x", "maxTokens": 4097}, TOKENS),
        ({"prompt": "x", "maxTokens": 10**30}, TOKENS),
        ({"prompt": "x", "maxTokens": 5.0}, TOKENS),
        ({"prompt": "x", "maxTokens": True}, TOKENS),
        ({"prompt": "x", "maxTokens": "5"}, TOKENS),
        ({"prompt": "x", "maxTokens": None}, TOKENS),
        ({"prompt": "x", "requestMetadata": {}}, PAIRS),
        ({"prompt": "x", "requestMetadata": None}, PAIRS),
        ({"prompt": "x", "requestMetadata": {f"k{n}": "v" for n in range(17)}}, PAIRS),
        (
            {"prompt": "x", "requestMetadata": {"headrace-team": "v"}},
            "/requestMetadata/headrace-team is not accepted: names that begin with headrace are ours.",
        ),
        (
            {"prompt": "x", "requestMetadata": {"": "v"}},
            f"/requestMetadata/ must have a name of 1 to {CHARACTERS}",
        ),
        (
            {"prompt": "x", "requestMetadata": {"é": "v"}},
            f"/requestMetadata/é must have a name of 1 to {CHARACTERS}",
        ),
        (
            {"prompt": "x", "requestMetadata": {"k" * 257: "v"}},
            f"/requestMetadata/{'k' * 64}... must have a name of 1 to {CHARACTERS}",
        ),
        (
            {"prompt": "x", "requestMetadata": {"k": "v" * 257}},
            f"/requestMetadata/k must be a string of at most {CHARACTERS}",
        ),
        (
            {"prompt": "x", "requestMetadata": {"k": "a;b"}},
            f"/requestMetadata/k must be a string of at most {CHARACTERS}",
        ),
        (
            {"prompt": "x", "requestMetadata": {"k": 1}},
            f"/requestMetadata/k must be a string of at most {CHARACTERS}",
        ),
    ],
)
def test_a_member_that_does_not_fit_is_refused_by_its_name(body: Any, detail: str) -> None:
    assert fault(body) == detail


USER_TURN = "must be user: user and assistant take turns, and user begins and ends."


@pytest.mark.promise("bad-input-refused")
@pytest.mark.parametrize(
    ("messages", "detail"),
    [
        ([], "/messages must be a list that is not empty."),
        ({"role": "user"}, "/messages must be a list that is not empty."),
        (["Hello"], "/messages/0 must be an object."),
        ([{"role": "user"}], "/messages/0/content is missing."),
        ([{"content": [TEXT]}], "/messages/0/role is missing."),
        (
            [user(TEXT) | {"name": "Ann"}],
            "/messages/0/name is not accepted: the members known there are role, content.",
        ),
        ([assistant(TEXT)], f"/messages/0/role {USER_TURN}"),
        ([{"role": ["user"], "content": [TEXT]}], f"/messages/0/role {USER_TURN}"),
        ([{"role": "system", "content": [TEXT]}], f"/messages/0/role {USER_TURN}"),
        (
            [user(TEXT), user(TEXT)],
            "/messages/1/role must be assistant: user and assistant take turns, and user begins and ends.",
        ),
        ([user(TEXT), assistant(TEXT), assistant(TEXT)], f"/messages/2/role {USER_TURN}"),
        (
            [user(TEXT), assistant(TEXT)],
            "/messages/1/role is assistant: the last message must be the user's.",
        ),
        ([user()], "/messages/0/content must be a list that is not empty."),
        ([{"role": "user", "content": "Hello"}], "/messages/0/content must be a list that is not empty."),
        (
            [user(TEXT), assistant(image()), user(TEXT)],
            "/messages/1/content/0/image must be in a message of the user.",
        ),
        ([user(*[image()] * 21)], "/messages/0/content has more than 20 image blocks: send fewer."),
        ([user(TEXT, *[document()] * 6)], "/messages/0/content has more than 5 document blocks: send fewer."),
        (
            [user(document())],
            "/messages/0/content has a document but no text: add a text block that says what to do with it.",
        ),
    ],
)
def test_a_conversation_that_bedrock_would_refuse_is_refused(messages: Any, detail: str) -> None:
    assert fault({"messages": messages}) == detail


AT = "/messages/0/content/0"
BAD_BASE64 = (
    f"{AT}/image/source/bytes is not valid base64: "
    "use the standard alphabet with padding, and no line breaks."
)
BAD_NAME = (
    f"{AT}/document/name must have 1 to 200 letters, digits, hyphens, parentheses, square brackets "
    "and single spaces, all ASCII."
)


@pytest.mark.promise("bad-input-refused")
@pytest.mark.parametrize(
    ("block", "detail"),
    [
        ("Hello", f"{AT} must be an object."),
        ({}, f"{AT} must have exactly one of text, image and document."),
        (TEXT | image(), f"{AT} must have exactly one of text, image and document."),
        ({"text": ""}, f"{AT}/text must be a string that is not blank."),
        ({"text": "\t"}, f"{AT}/text must be a string that is not blank."),
        ({"text": ["Hello"]}, f"{AT}/text must be a string that is not blank."),
        (
            {"video": {}},
            f"{AT}/video is not accepted: the members known there are text, image, document.",
        ),
        (
            {"toolUse": {}},
            (
                f"{AT}/toolUse is not accepted: "
                "tool calls are made and recorded by the service; send text, image or document."
            ),
        ),
        (
            {"toolResult": {}},
            (
                f"{AT}/toolResult is not accepted: "
                "tools are called by the service; send text, image or document."
            ),
        ),
        ({"image": PNG}, f"{AT}/image must be an object."),
        ({"image": {"format": "png"}}, f"{AT}/image/source is missing."),
        (image(format="bmp"), f"{AT}/image/format must be one of png, jpeg, gif, webp."),
        (image(format=["png"]), f"{AT}/image/format must be one of png, jpeg, gif, webp."),
        (image(name="x"), f"{AT}/image/name is not accepted: the members known there are format, source."),
        (image(source=PNG), f"{AT}/image/source must be an object."),
        (image(source={}), f"{AT}/image/source/bytes is missing."),
        (
            image(source={"s3Location": {"uri": "s3://bucket/key"}}),
            f"{AT}/image/source/s3Location is not accepted: send the content itself, in base64, as bytes.",
        ),
        (
            image(source={"bytes": ""}),
            f"{AT}/image/source/bytes must be a string of base64 that is not empty.",
        ),
        (
            image(source={"bytes": 1}),
            f"{AT}/image/source/bytes must be a string of base64 that is not empty.",
        ),
        (image(source={"bytes": "QQ"}), BAD_BASE64),
        (image(source={"bytes": "QQ=="[:3]}), BAD_BASE64),
        (image(source={"bytes": "QQ==QQ=="}), BAD_BASE64),
        (image(source={"bytes": "Q\nQ=="}), BAD_BASE64),
        (image(source={"bytes": "Q-_="}), BAD_BASE64),
        (image(source={"bytes": "éééé"}), BAD_BASE64),
        (image(source={"bytes": "===="}), BAD_BASE64),
        (
            image(source={"bytes": "A" * 5_242_880 + "AA=="}),
            f"{AT}/image/source/bytes holds more than 3932160 bytes: send a smaller one.",
        ),
        (
            document(source={"bytes": "A" * 6_291_456 + "AA=="}),
            f"{AT}/document/source/bytes holds more than 4718592 bytes: send a smaller one.",
        ),
        (
            document(format="exe"),
            f"{AT}/document/format must be one of pdf, csv, doc, docx, xls, xlsx, html, txt, md.",
        ),
        ({"document": {"format": "pdf", "source": {"bytes": PNG}}}, f"{AT}/document/name is missing."),
        (document(name=""), BAD_NAME),
        (document(name="report.pdf"), BAD_NAME),
        (document(name="two  spaces"), BAD_NAME),
        (document(name="résumé"), BAD_NAME),
        (document(name="n" * 201), BAD_NAME),
        (document(name=7), BAD_NAME),
        (
            document(citations={"enabled": True}),
            f"{AT}/document/citations is not accepted: the members known there are format, name, source.",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else json.dumps(value)[:60],
)
def test_a_block_that_does_not_fit_is_refused_by_its_place(block: Any, detail: str) -> None:
    assert fault({"messages": [user(block)]}) == detail


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(
            st.sampled_from(["text", "image", "source", "role", "content"]) | st.text(), children, max_size=3
        )
    ),
    max_leaves=8,
)


def outcome(body: Any) -> str:
    try:
        parsed(body)
    except InvalidRequest as error:
        return error.detail
    return "taken"


@given(member=st.sampled_from(["messages", "maxTokens", "requestMetadata"]), value=json_values)
def test_whatever_is_in_a_member_it_is_taken_or_refused_with_a_sentence(member: str, value: Any) -> None:
    body = {member: value} if member == "messages" else {"prompt": "x", member: value}

    assert outcome(body).startswith(("taken", f"/{member}", "The body", "The member"))


@given(body=st.binary(max_size=64))
def test_whatever_bytes_come_nothing_but_a_refusal_leaves(body: bytes) -> None:
    assert fault(body)
