"""Tokens and key sets against Wycheproof's vectors, and the decoders below them."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import Unauthenticated
from service.jose import UnusableKeys, decode_base64url, decode_object, parse_jwks, parse_jws
from tests.id_tokens import ABSENT, KEY, SECOND_KEY, jwk, jwks

VECTORS = Path(__file__).parents[1] / "vectors" / "wycheproof"

# What else Wycheproof calls valid is signed with another algorithm, and refused for that before a key is
# looked up; two of these have a character in them that is not base64url, and are refused for that.
VALID_RS256 = {33, 259, 260, 261, 262, 263, 345, 349}
VALID_WITH_STRAY_CHARACTER = {372, 373}
# PyJWT restricted to RS256 takes these, with a key for PS512, for encryption, for the operation "encrypt".
TAKEN_BY_PYJWT = {332, 353, 355}


def cases(name: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return each test of a vector file with its group."""
    groups = json.loads((VECTORS / name).read_text(encoding="utf-8"))["testGroups"]
    return [(group, test) for group in groups for test in group["tests"]]


JWS_CASES = cases("json_web_signature_test.json")
JWK_CASES = cases("json_web_key_test.json")


def named(case: tuple[dict[str, Any], dict[str, Any]]) -> str:
    group, test = case
    return f"{test['tcId']}-{group['comment']}-{test['comment']}"


def accepts(key_set: dict[str, Any], token: str) -> bool:
    """Go the way of `Identity`: read the key set, take the token apart, find its key, verify."""
    try:
        keys = parse_jwks(json.dumps(key_set).encode())
    except UnusableKeys:
        keys = {}
    try:
        jws = parse_jws(token)
        if jws.kid in keys:
            jws.verify(keys[jws.kid])
            return True
    except Unauthenticated:
        pass
    return False


@pytest.mark.promise("wycheproof")
@pytest.mark.parametrize("case", JWS_CASES, ids=named)
def test_a_wycheproof_jws_is_accepted_if_and_only_if_it_is_valid_and_rs256(
    case: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    group, test = case
    key = group.get("public", group["private"])  # a symmetric key has only a private form

    accepted = accepts({"keys": [key]}, test["jws"])

    assert accepted == (test["tcId"] in VALID_RS256)


def test_the_wycheproof_cases_are_all_there_and_sorted_right() -> None:
    results = {test["tcId"]: test["result"] for _, test in JWS_CASES}
    algorithms = {test["tcId"]: group.get("public", group["private"]).get("alg") for group, test in JWS_CASES}

    assert len(results) == len(JWS_CASES) == 401
    assert len(JWK_CASES) == 26
    assert {
        n for n, result in results.items() if result == "valid" and algorithms[n] == "RS256"
    } == VALID_RS256
    assert {results[n] for n in TAKEN_BY_PYJWT} == {"invalid"}


@pytest.mark.promise("wycheproof")
@pytest.mark.parametrize(
    "case",
    [case for case in JWS_CASES if case[1]["result"] == "valid" and case[1]["tcId"] not in VALID_RS256],
    ids=named,
)
def test_a_jws_of_another_algorithm_is_refused_whatever_its_key(
    case: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    _, test = case

    with pytest.raises(Unauthenticated) as refused:
        parse_jws(test["jws"])

    stray = test["tcId"] in VALID_WITH_STRAY_CHARACTER
    assert refused.value.detail.startswith(
        "The token is not a JWT in compact form" if stray else "The token is not signed with RS256"
    )


@pytest.mark.promise("wycheproof")
@pytest.mark.parametrize("case", [c for c in JWS_CASES if c[1]["tcId"] in TAKEN_BY_PYJWT], ids=named)
def test_a_key_published_for_something_else_is_not_in_the_key_set(
    case: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    group, _ = case

    with pytest.raises(UnusableKeys) as refused:
        parse_jwks(json.dumps({"keys": [group["public"]]}).encode())

    assert str(refused.value) == "the JWKS has no RSA key for RS256 signatures"


# The ROCA key (7) verifies: its fault is the chip that made it. Our keys come from the issuer that is
# configured; one with keys like that is for its operator to replace.
@pytest.mark.promise("wycheproof")
@pytest.mark.parametrize("case", JWK_CASES, ids=named)
def test_a_wycheproof_key_set_verifies_if_and_only_if_its_key_is_for_rs256(
    case: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    group, test = case

    accepted = accepts(group.get("public", group["private"]), test["jws"])

    assert accepted == (test["tcId"] in {5, 7})


SMALL_KEY = rsa.generate_private_key(65537, 1024)  # noqa: S505 - to see it refused

BAD_KEYS: dict[str, tuple[Any, str]] = {
    "not an object": ("key-2", "the key is not an RSA key"),
    "an EC key": (
        {"kid": "key-2", "kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        "the key is not an RSA key",
    ),
    "a secret": ({"kid": "key-2", "kty": "oct", "k": "c2VjcmV0"}, "the key is not an RSA key"),
    "no type": (jwk(SECOND_KEY, "key-2", kty=ABSENT), "the key is not an RSA key"),
    "no id": (jwk(SECOND_KEY, kid=ABSENT), "the key has no id"),
    "an empty id": (jwk(SECOND_KEY, ""), "the key has no id"),
    "a number for id": (jwk(SECOND_KEY, kid=2), "the key has no id"),
    "a long id": (jwk(SECOND_KEY, "k" * 257), "the key has no id"),
    "for encryption": (jwk(SECOND_KEY, "key-2", use="enc"), "the key is not for signatures"),
    "use is null": (jwk(SECOND_KEY, "key-2", use=None), "the key is not for signatures"),
    "for signing": (jwk(SECOND_KEY, "key-2", key_ops=["sign"]), "the key is not for signatures"),
    "key_ops is text": (jwk(SECOND_KEY, "key-2", key_ops="verify"), "the key is not for signatures"),
    "for RS512": (jwk(SECOND_KEY, "key-2", alg="RS512"), "the key is for another algorithm"),
    "for PS256": (jwk(SECOND_KEY, "key-2", alg="PS256"), "the key is for another algorithm"),
    "private": (jwk(SECOND_KEY, "key-2", d="AQAB"), "the key is published with its private part"),
    "no modulus": (jwk(SECOND_KEY, "key-2", n=ABSENT), "the key's numbers are missing or wrong"),
    "modulus is a number": (
        jwk(SECOND_KEY, "key-2", n=2**2048 - 1),
        "the key's numbers are missing or wrong",
    ),
    "modulus is empty": (jwk(SECOND_KEY, "key-2", n=""), "the key's numbers are missing or wrong"),
    "modulus is padded": (jwk(SECOND_KEY, "key-2", n="AQ=="), "the key's numbers are missing or wrong"),
    "modulus is not ASCII": (jwk(SECOND_KEY, "key-2", n="é"), "the key's numbers are missing or wrong"),
    "exponent is 1": (jwk(SECOND_KEY, "key-2", e="AQ"), "the key's numbers are missing or wrong"),
    "1024 bits": (jwk(SMALL_KEY, "key-2"), "the key has fewer than 2048 bits"),
}


@pytest.mark.parametrize(("bad", "fault"), BAD_KEYS.values(), ids=BAD_KEYS)
def test_a_bad_key_is_logged_and_skipped_among_good_ones(
    bad: Any, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    keys = parse_jwks(jwks(bad, jwk()))

    assert keys == {"key-1": KEY.public_key()}
    assert [(r.levelname, r.getMessage(), vars(r)["fault"]) for r in caplog.records] == [
        ("WARNING", "issuer key skipped", fault)
    ]


def test_a_key_that_does_not_say_what_it_is_for_or_says_verify_is_taken() -> None:
    silent = jwk(use=ABSENT, alg=ABSENT)
    verifying = jwk(SECOND_KEY, "key-2", use=ABSENT, key_ops=["verify"])

    assert parse_jwks(jwks(silent, verifying)) == {
        "key-1": KEY.public_key(),
        "key-2": SECOND_KEY.public_key(),
    }


@settings(deadline=None, database=None)
@given(st.binary(max_size=40))
def test_base64url_reads_back_what_was_written(content: bytes) -> None:
    written = base64.urlsafe_b64encode(content).rstrip(b"=")

    assert decode_base64url(written) == content


@settings(deadline=None, database=None)
@given(st.text("AQgwBZ-_+/= \n\t.é", max_size=9))
def test_base64url_has_one_spelling_per_content(spelling: str) -> None:
    segment = spelling.encode()
    try:
        content = decode_base64url(segment)
    except ValueError:
        return

    assert base64.urlsafe_b64encode(content).rstrip(b"=") == segment


@pytest.mark.parametrize(
    "segment",
    [b"QQ==", b"QQ=", b"QR", b"QUJ", b"Q", b"QQ\n", b" QQ", b"Q Q", b"+/+/", b"Q.Q", b"=", b"\xff\xfe"],
)
def test_base64url_of_another_spelling_is_refused(segment: bytes) -> None:
    with pytest.raises(ValueError):
        decode_base64url(segment)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b'"a"',
        b"null",
        b"{",
        b"{} {}",
        b'{"a":1,"a":1}',
        b'{"a":{"b":1,"b":2}}',
        b'{"a":[{"b":1,"b":2}]}',
        b'{"a":1,"\\u0061":2}',
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":"\xff"}',
        b"\xef\xbb\xbf{}",
        '{"a":1}'.encode("utf-16"),
        b'{"a":' + b"1" * 5000 + b"}",
        b'{"a":' + b"[" * 5000,
    ],
    ids=repr,
)
def test_json_that_is_not_one_object_with_one_reading_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):
        decode_object(text)


def test_a_json_object_is_decoded() -> None:
    assert decode_object(' {"a": {"b": [1, 2.5, "é", null, true]}} '.encode()) == {
        "a": {"b": [1, 2.5, "é", None, True]}
    }
