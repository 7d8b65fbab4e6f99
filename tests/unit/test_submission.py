"""The body of a submit request: what is taken, and the sentence that each fault gets."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidRequest
from service.submission import Submission
from tests.submitting import PNG, TEXT, assistant, document, fault, image, parsed, user

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
        {"prompt": "x", "requestMetadata": {f"k{n}": "v" * 256 for n in range(15)}},
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


# ---------------------------------------------------------------- what is refused: members

ONE_OF_TWO = "Send exactly one of /prompt (text) and /messages (a conversation)."
TOKENS = "/maxTokens must be a whole number from 1 to 4096."
KNOWN = "the members known there are prompt, messages, maxTokens, requestMetadata."
PAIRS = "/requestMetadata must be an object with 1 to 15 members."
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
        ({"prompt": "x", "requestMetadata": {f"k{n}": "v" for n in range(16)}}, PAIRS),
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
