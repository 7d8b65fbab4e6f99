"""The body of a submit request -> a `Submission`, or `InvalidRequest` with a sentence that names the member.

`api.submit` calls it with the whole body, read within its limit. Pure; calls no other station.

    {"prompt": "text"}                                                              or
    {"messages": [{"role": "user", "content": [{"text": "..."}]}, ...]}             Bedrock Converse messages
    optional: "maxTokens": 2048, "requestMetadata": {"team": "search"}

What passes is an allow-list: the members of every object are known here, so one that Bedrock learns tomorrow
is refused until this module knows what it costs. Hence no valid body nests deeper than seven levels (the
contract says 64), and the parser itself stops at 1,024. Messages are returned as they came, bytes in base64.

Sources: the pages of https://docs.aws.amazon.com/bedrock/latest/APIReference/ named beside each limit.
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import orjson

from service.config import RuntimeConfig
from service.errors import InvalidRequest

# Commas and opening brackets outside strings: parsing costs by these, not by bytes (10 MB of `[],` would hold
# the event loop for a second, 10 MB of text for 3 ms). Room for 5,000 messages of one text block.
MAX_SEPARATORS: Final = 25_000
MAX_SHOWN_NAME: Final = 64
_ESCAPED_COLON: Final = re.compile(rb"\\u003[aA]")

# https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ConverseStream.html (requestMetadata)
MAX_METADATA_PAIRS: Final = 15  # of 16: `converse` adds one
_METADATA_KEY: Final = re.compile(r"[a-zA-Z0-9\s:_@$#=/+,\-.]{1,256}", re.ASCII)
_METADATA_VALUE: Final = re.compile(r"[a-zA-Z0-9\s:_@$#=/+,\-.]{0,256}", re.ASCII)
OUR_METADATA_PREFIX: Final = "headrace"

# https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_DocumentBlock.html: no two spaces on end
_DOCUMENT_NAME: Final = re.compile(r"(?:[a-zA-Z0-9\-()\[\]]|\s(?!\s)){1,200}", re.ASCII)


class _Media(NamedTuple):
    """What Bedrock takes of one kind of block: `max_bytes` when decoded, `max_count` in one message."""

    members: tuple[str, ...]
    formats: tuple[str, ...]
    max_bytes: int
    max_count: int


# https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Message.html says 3.75 MB and 4.5 MB:
# taken as binary megabytes (exactly 5 and 6 of them in base64), since Bedrock itself has the last word.
_MEDIA: Final = {
    "image": _Media(("format", "source"), ("png", "jpeg", "gif", "webp"), 3_932_160, 20),
    "document": _Media(
        ("format", "name", "source"),
        ("pdf", "csv", "doc", "docx", "xls", "xlsx", "html", "txt", "md"),
        4_718_592,
        5,
    ),
}

_INSTEAD: Final = {
    "toolUse": "tool calls are made and recorded by the service; send text, image or document",
    "toolResult": "tools are called by the service; send text, image or document",
    "s3Location": "send the content itself, in base64, as bytes",
}


@dataclass(frozen=True, slots=True)
class Submission:
    """What a caller asks for. `messages` are Bedrock Converse messages as JSON (bytes members in base64)."""

    messages: tuple[Mapping[str, Any], ...]
    max_tokens: int
    request_metadata: Mapping[str, str]


def parse_submission(body: bytes, runtime: RuntimeConfig) -> Submission:
    """Parse and validate the body of a submit request for `runtime`.

    Raises:
        InvalidRequest: The body's first fault. Its `detail` shows names of members, never values.
    """
    document = _parse(body)
    _require_members("", document, (), ("prompt", "messages", "maxTokens", "requestMetadata"))
    if ("prompt" in document) == ("messages" in document):
        raise InvalidRequest("Send exactly one of /prompt (text) and /messages (a conversation).")
    if "prompt" in document:
        _require_text("/prompt", document["prompt"])
        messages: Sequence[Mapping[str, Any]] = [{"role": "user", "content": [{"text": document["prompt"]}]}]
    else:
        messages = document["messages"]
        _require_conversation(messages)
    max_tokens = document.get("maxTokens", runtime.max_output_tokens)
    if type(max_tokens) is not int or not 1 <= max_tokens <= runtime.max_output_tokens:
        raise InvalidRequest(f"/maxTokens must be a whole number from 1 to {runtime.max_output_tokens}.")
    reasoning = runtime.options.reasoning
    if reasoning is not None and max_tokens <= reasoning.budget_tokens:
        raise InvalidRequest(
            f"/maxTokens must be more than {reasoning.budget_tokens}, which this runtime may think with."
        )
    if "requestMetadata" in document:
        _require_metadata(document["requestMetadata"])
    _require_members_once(body, document)
    return Submission(tuple(messages), max_tokens, document.get("requestMetadata", {}))


def _parse(body: bytes) -> Any:
    """Parse strict JSON; orjson takes no byte order mark, NaN, infinity or unpaired surrogate."""
    if _has_too_many_values(body):
        raise InvalidRequest("The body has too many members and list items: send fewer messages.")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        try:
            body.decode()
        except UnicodeDecodeError as not_utf8:
            raise InvalidRequest(
                f"The body is not UTF-8: byte {not_utf8.start} can't be decoded."
            ) from not_utf8
        raise InvalidRequest(
            f"The body is not valid JSON: the parser stopped at line {error.lineno}, column {error.colno}. "
            "Send UTF-8 without a byte order mark, NaN, Infinity or unpaired surrogates, "
            "nested at most 64 deep."
        ) from error


def _has_too_many_values(body: bytes) -> bool:
    """Tell whether parsing would cost too much; strings are taken out only where a raw count leaves doubt."""
    if _count_separators(body) <= MAX_SEPARATORS:
        return False
    unescaped = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    # A separator goes before at most two strings, a name and its value; this also bounds the split below.
    if unescaped.count(b'"') > 4 * MAX_SEPARATORS:
        return True
    return _count_separators(b"".join(unescaped.split(b'"')[::2])) > MAX_SEPARATORS


def _count_separators(text: bytes) -> int:
    return len(text) - len(text.translate(None, b",[{"))


def _require_members_once(body: bytes, document: Any) -> None:
    """Refuse a name given twice in one object: readers of JSON differ on which one counts.

    The parser keeps the last one, so the other's colon is missing when the document is written out again.
    Nothing else changes the number of colons but the escape `\\u003a`. Only then a slower parser looks.
    """
    if not _ESCAPED_COLON.search(body) and body.count(b":") == orjson.dumps(document).count(b":"):
        return
    try:
        json.loads(body, object_pairs_hook=_require_names_once)
    except RecursionError as error:
        # What was validated does not nest that deeply: a member that was replaced does.
        raise InvalidRequest("A member is there twice in the same object: send it once.") from error


def _require_names_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise InvalidRequest(
                f"The member {_shown(name)} is there twice in the same object: send it once."
            )
        members[name] = value
    return members


def _require_members(where: str, value: Any, required: Sequence[str], optional: Sequence[str] = ()) -> None:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{where or 'The body'} must be an object.")
    for name in value:
        if name not in required and name not in optional:
            known = ", ".join((*required, *optional))
            instead = _INSTEAD.get(name, f"the members known there are {known}")
            raise InvalidRequest(f"{where}/{_shown(name)} is not accepted: {instead}.")
    for name in required:
        if name not in value:
            raise InvalidRequest(f"{where}/{name} is missing.")


def _require_text(where: str, value: Any) -> None:
    # Bedrock refuses text that is only white space too.
    if not isinstance(value, str) or not value or value.isspace():
        raise InvalidRequest(f"{where} must be a string that is not blank.")


def _require_list(where: str, value: Any) -> None:
    if not isinstance(value, list) or not value:
        raise InvalidRequest(f"{where} must be a list that is not empty.")


def _require_conversation(messages: Any) -> None:
    _require_list("/messages", messages)
    for index, message in enumerate(messages):
        where = f"/messages/{index}"
        _require_members(where, message, ("role", "content"))
        role = "assistant" if index % 2 else "user"
        if message["role"] != role:
            raise InvalidRequest(
                f"{where}/role must be {role}: user and assistant take turns, and user begins and ends."
            )
        _require_content(f"{where}/content", message["content"], role)
    if len(messages) % 2 == 0:
        raise InvalidRequest(
            f"/messages/{len(messages) - 1}/role is assistant: the last message must be the user's."
        )


def _require_content(where: str, content: Any, role: str) -> None:
    _require_list(where, content)
    counts = dict.fromkeys(("text", *_MEDIA), 0)
    for index, block in enumerate(content):
        at = f"{where}/{index}"
        _require_members(at, block, (), ("text", *_MEDIA))
        if len(block) != 1:
            raise InvalidRequest(f"{at} must have exactly one of text, image and document.")
        ((kind, value),) = block.items()
        counts[kind] += 1
        if kind == "text":
            _require_text(f"{at}/text", value)
        elif role != "user":
            raise InvalidRequest(f"{at}/{kind} must be in a message of the user.")
        else:
            _require_media(f"{at}/{kind}", value, kind)
    for kind, media in _MEDIA.items():
        if counts[kind] > media.max_count:
            raise InvalidRequest(f"{where} has more than {media.max_count} {kind} blocks: send fewer.")
    if counts["document"] and not counts["text"]:
        raise InvalidRequest(
            f"{where} has a document but no text: add a text block that says what to do with it."
        )


def _require_media(where: str, value: Any, kind: str) -> None:
    media = _MEDIA[kind]
    _require_members(where, value, media.members)
    if value["format"] not in media.formats:
        raise InvalidRequest(f"{where}/format must be one of {', '.join(media.formats)}.")
    if "name" in media.members:
        name = value["name"]
        if not isinstance(name, str) or not _DOCUMENT_NAME.fullmatch(name):
            raise InvalidRequest(
                f"{where}/name must have 1 to 200 letters, digits, hyphens, parentheses, square brackets "
                "and single spaces, all ASCII."
            )
    _require_members(f"{where}/source", value["source"], ("bytes",))
    _require_base64(f"{where}/source/bytes", value["source"]["bytes"], media.max_bytes)


def _require_base64(where: str, value: Any, max_bytes: int) -> None:
    if not isinstance(value, str) or not value:
        raise InvalidRequest(f"{where} must be a string of base64 that is not empty.")
    # Four characters hold three bytes: a text that is too long for that need not be decoded.
    too_long = len(value) > (max_bytes + 2) // 3 * 4
    try:
        too_long = too_long or len(base64.b64decode(value, validate=True)) > max_bytes
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(
            f"{where} is not valid base64: use the standard alphabet with padding, and no line breaks."
        ) from error
    if too_long:
        raise InvalidRequest(f"{where} holds more than {max_bytes} bytes: send a smaller one.")


def _require_metadata(pairs: Any) -> None:
    where = "/requestMetadata"
    if not isinstance(pairs, dict) or not 1 <= len(pairs) <= MAX_METADATA_PAIRS:
        raise InvalidRequest(f"{where} must be an object with 1 to {MAX_METADATA_PAIRS} members.")
    characters = "letters, digits, white space and : _ @ $ # = / + , - ."
    for name, value in pairs.items():
        at = f"{where}/{_shown(name)}"
        if name.startswith(OUR_METADATA_PREFIX):
            raise InvalidRequest(
                f"{at} is not accepted: names that begin with {OUR_METADATA_PREFIX} are ours."
            )
        if not _METADATA_KEY.fullmatch(name):
            raise InvalidRequest(f"{at} must have a name of 1 to 256 {characters}")
        if not isinstance(value, str) or not _METADATA_VALUE.fullmatch(value):
            raise InvalidRequest(f"{at} must be a string of at most 256 {characters}")


def _shown(name: str) -> str:
    """Show a member's name as a part of a JSON pointer (RFC 6901), cut short."""
    shown = name[:MAX_SHOWN_NAME].replace("~", "~0").replace("/", "~1")
    return shown if len(name) <= MAX_SHOWN_NAME else shown + "..."
