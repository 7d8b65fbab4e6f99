"""ID tokens as they are forged: what is refused, and with which words."""

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, hmac, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from service.errors import Unauthenticated
from tests.clock import ManualClock
from tests.id_tokens import (
    ABSENT,
    CLAIMS,
    CLIENT,
    ISSUER,
    KEY,
    NOW_S,
    SECOND_KEY,
    ScriptedIssuer,
    Sign,
    bearer,
    jwk,
    jwks,
    rs256,
    started_identity,
    token,
)

ATTACKER = rsa.generate_private_key(65537, 2048)

MISSING = "There is no Authorization header; send 'Authorization: Bearer' and the ID token."
NOT_BEARER = "The Authorization header must be 'Bearer', one space and the ID token."
NOT_COMPACT = (
    "The token is not a JWT in compact form (three base64url parts joined by dots);"
    " send the ID token exactly as it was issued."
)
TOO_LARGE = "The token is larger than 8 KB; map fewer attributes or groups into it."
NOT_RS256 = "The token is not signed with RS256; send the ID token that the issuer gave you."
ODD_HEADER = "The token's header has members that no ID token of this issuer has."
NO_KID = "The token's header does not name the key that it is signed with."
UNKNOWN_KEY = "The token is signed with a key that its issuer does not publish; get a new ID token."
BAD_SIGNATURE = "The token's signature is wrong; send the ID token exactly as it was issued."
NOT_CLAIMS = "The token's claims are not one JSON object without duplicates."
OTHER_ISSUER = "The token comes from another issuer; sign in to this deployment's user pool."
NOT_ID_TOKEN = "This is not an ID token; send the ID token of the sign-in, not the access token."
OTHER_CLIENT = "The token is for another app client; sign in through one of this deployment's."
EXPIRED = "The token has expired; get a new ID token by refreshing or signing in again."
FUTURE = "The token was issued in the future; a clock is wrong, the issuer's or ours."
NOT_YET = "The token is not valid yet; use it later."
BACKWARDS = "The token expires before it was issued; get a new ID token."
TOO_LONG = "The token lives longer than 3600 s; shorten the app client's ID tokens."
BAD_GROUPS = "The token's claim cognito:groups must be a list of at most 100 names."


def bad_time(claim: str) -> str:
    return f"The token's claim {claim} must be a time in seconds; get a new ID token."


def bad_name(claim: str) -> str:
    return f"The token's claim {claim} must be a text of 1 to 128 characters."


def pss(signing_input: bytes) -> bytes:
    return KEY.sign(signing_input, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())


def hs256(secret: bytes) -> Sign:
    def sign(signing_input: bytes) -> bytes:
        mac = hmac.HMAC(secret, hashes.SHA256())
        mac.update(signing_input)
        return mac.finalize()

    return sign


def with_claim(text: str) -> bytes:
    """Return the good claims with raw JSON in front."""
    return ("{" + text + "," + json.dumps(CLAIMS)[1:]).encode()


def with_number(claim: str, number: str) -> bytes:
    """Return the good claims with one number written like this."""
    return with_claim(f'"{claim}":{number}').replace(f', "{claim}": {CLAIMS[claim]}'.encode(), b"")


GOOD = token()
HEADER, PAYLOAD, SIGNATURE = GOOD.split(".")
OTHER_HEADER, OTHER_PAYLOAD, _ = token({"sub": "admin"}, {"typ": "JWT"}).split(".")
PUBLIC_PEM = KEY.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)
TWO_ALGS = b'{"alg":"none","alg":"RS256","kid":"key-1"}'
TWO_KIDS = b'{"kid":"key-2","alg":"RS256","kid":"key-1"}'


FORGED_FORM: dict[str, tuple[str | None, str]] = {
    "no header": (None, MISSING),
    "empty header": ("", MISSING),
    "basic": ("Basic bWFyeTpwYXNz", NOT_BEARER),
    "no scheme": (GOOD, NOT_BEARER),
    "no token": ("Bearer ", NOT_BEARER),
    "no space": ("Bearer", NOT_BEARER),
    "tab": (f"Bearer\t{GOOD}", NOT_BEARER),
    "space before": (f" Bearer {GOOD}", NOT_BEARER),
    "two spaces": (f"Bearer  {GOOD}", NOT_COMPACT),
    "two tokens": (f"Bearer {GOOD}, Bearer {GOOD}", NOT_COMPACT),
    "garbage": ("Bearer secret", NOT_COMPACT),
    "trailing newline": (f"Bearer {GOOD}\n", NOT_COMPACT),
    "trailing space": (f"Bearer {GOOD} ", NOT_COMPACT),
    "padded header": (f"Bearer {HEADER}=.{PAYLOAD}.{SIGNATURE}", NOT_COMPACT),
    "padded payload": (f"Bearer {HEADER}.{PAYLOAD}==.{SIGNATURE}", NOT_COMPACT),
    "padded signature": (f"Bearer {GOOD}==", NOT_COMPACT),
    "newline in the payload": (f"Bearer {HEADER}.{PAYLOAD[:8]}\n{PAYLOAD[8:]}.{SIGNATURE}", NOT_COMPACT),
    "standard alphabet": (f"Bearer {HEADER}.{PAYLOAD}.{'+/' + SIGNATURE[2:]}", NOT_COMPACT),
    "stray bits": (f"Bearer {HEADER}.{PAYLOAD}.{SIGNATURE[:-1]}B", NOT_COMPACT),
    "extra dot": (f"Bearer {GOOD}.", NOT_COMPACT),
    "leading dot": (f"Bearer .{GOOD}", NOT_COMPACT),
    "five parts": (f"Bearer {HEADER}.{PAYLOAD}.{SIGNATURE}.{PAYLOAD}.{SIGNATURE}", NOT_COMPACT),
    "two parts": (f"Bearer {HEADER}.{PAYLOAD}", NOT_COMPACT),
    "Unicode digit": (f"Bearer {HEADER}.{PAYLOAD}.{SIGNATURE[:-1]}\uff11", NOT_COMPACT),
    "latin-1 byte": (f"Bearer {GOOD}\xa0", NOT_COMPACT),
    "lone surrogate": (f"Bearer {GOOD}\udc80", NOT_COMPACT),
    "JSON serialization": (
        f"Bearer {json.dumps({'protected': HEADER, 'payload': PAYLOAD, 'signature': SIGNATURE})}",
        NOT_COMPACT,
    ),
    "9 KB": (bearer({"picture": "x" * 6000}), TOO_LARGE),
    "1 MB of dots": ("Bearer " + "." * 1_000_000, TOO_LARGE),
    "header is no JSON": (bearer(raw_header=b"alg"), NOT_COMPACT),
    "header is a list": (bearer(raw_header=b"[]"), NOT_COMPACT),
    "header is empty": (f"Bearer .{PAYLOAD}.{SIGNATURE}", NOT_COMPACT),
    "header nests": (bearer(raw_header=b"[" * 3000), NOT_COMPACT),
    "header names alg twice": (bearer(raw_header=TWO_ALGS), NOT_COMPACT),
    "header names kid twice": (bearer(raw_header=TWO_KIDS), NOT_COMPACT),
    "none without signature": (bearer(header={"alg": "none"}, sign=lambda _: b""), NOT_RS256),
    "None in capitals": (bearer(header={"alg": "NONE"}, sign=lambda _: b""), NOT_RS256),
    "none with a signature": (bearer(header={"alg": "none"}), NOT_RS256),
    "HS256 by the public key": (bearer(header={"alg": "HS256"}, sign=hs256(PUBLIC_PEM)), NOT_RS256),
    "HS256 by the modulus": (
        bearer(header={"alg": "HS256"}, sign=hs256(jwk()["n"].encode())),
        NOT_RS256,
    ),
    "PS256": (bearer(header={"alg": "PS256"}, sign=pss), NOT_RS256),
    "RS512": (bearer(header={"alg": "RS512"}), NOT_RS256),
    "rs256 in lower case": (bearer(header={"alg": "rs256"}), NOT_RS256),
    "alg is a list": (bearer(header={"alg": ["RS256"]}), NOT_RS256),
    "no alg": (bearer(header={"alg": ABSENT}), NOT_RS256),
    "crit": (bearer(header={"crit": ["exp"]}), ODD_HEADER),
    "empty crit": (bearer(header={"crit": []}), ODD_HEADER),
    "b64 false": (bearer(header={"b64": False, "crit": ["b64"]}), ODD_HEADER),
    "b64 true": (bearer(header={"b64": True}), ODD_HEADER),
    "embedded key": (
        bearer(header={"jwk": jwk(ATTACKER, "key-1")}, sign=rs256(ATTACKER)),
        ODD_HEADER,
    ),
    "key by URL": (bearer(header={"jku": "https://attacker.example/jwks.json"}), ODD_HEADER),
    "certificate by URL": (bearer(header={"x5u": "https://attacker.example/cert"}), ODD_HEADER),
    "embedded certificate": (bearer(header={"x5c": ["MIIB"]}), ODD_HEADER),
    "no kid": (bearer(header={"kid": ABSENT}), NO_KID),
    "empty kid": (bearer(header={"kid": ""}), NO_KID),
    "kid is a number": (bearer(header={"kid": 1}), NO_KID),
    "kid is a list": (bearer(header={"kid": ["key-1"]}), NO_KID),
    "kid is a path": (bearer(header={"kid": "../../../../dev/null"}), UNKNOWN_KEY),
    "kid is a query": (bearer(header={"kid": "' OR 1=1 --"}), UNKNOWN_KEY),
    "kid in capitals": (bearer(header={"kid": "KEY-1"}), UNKNOWN_KEY),
    "kid is a lone surrogate": (bearer(header={"kid": "\ud800"}), UNKNOWN_KEY),
    "kid of the other key": (bearer(header={"kid": "key-2"}), BAD_SIGNATURE),
    "another's key": (bearer(sign=rs256(ATTACKER)), BAD_SIGNATURE),
    "PSS called RS256": (bearer(sign=pss), BAD_SIGNATURE),
    "HMAC called RS256": (bearer(sign=hs256(PUBLIC_PEM)), BAD_SIGNATURE),
    "no signature": (f"Bearer {HEADER}.{PAYLOAD}.", BAD_SIGNATURE),
    "longer signature": (bearer(sign=lambda i: b"\0" + rs256()(i)), BAD_SIGNATURE),
    "payload changed": (f"Bearer {HEADER}.{OTHER_PAYLOAD}.{SIGNATURE}", BAD_SIGNATURE),
    "header changed": (f"Bearer {OTHER_HEADER}.{PAYLOAD}.{SIGNATURE}", BAD_SIGNATURE),
    "no payload": (f"Bearer {HEADER}..{SIGNATURE}", BAD_SIGNATURE),
}


@pytest.mark.promise("id-token-only")
@pytest.mark.parametrize(("authorization", "detail"), FORGED_FORM.values(), ids=FORGED_FORM)
async def test_a_token_of_another_form_key_or_algorithm_is_refused(
    authorization: str | None, detail: str, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="service")
    identity = await started_identity(clock, ScriptedIssuer(jwks(jwk(), jwk(SECOND_KEY, "key-2"))))

    with pytest.raises(Unauthenticated) as refused:
        await identity.authenticate(authorization)

    assert refused.value.detail == detail
    assert caplog.text == ""


FORGED_CLAIMS: dict[str, tuple[dict[str, Any] | bytes, str]] = {
    "claims are empty": (b"", NOT_CLAIMS),
    "claims are a list": (b"[]", NOT_CLAIMS),
    "claims are text": (b"Zm9v", NOT_CLAIMS),
    "claims in UTF-16": (json.dumps(CLAIMS).encode("utf-16"), NOT_CLAIMS),
    "claims are cut": (json.dumps(CLAIMS).encode()[:-1], NOT_CLAIMS),
    "two objects": (json.dumps(CLAIMS).encode() * 2, NOT_CLAIMS),
    "sub twice": (with_claim('"sub":"admin"'), NOT_CLAIMS),
    "sub twice, escaped": (with_claim('"su\\u0062":"admin"'), NOT_CLAIMS),
    "exp twice": (with_claim('"exp":1'), NOT_CLAIMS),
    "duplicate inside": (with_claim('"address":{"a":1,"a":2}'), NOT_CLAIMS),
    "NaN somewhere": (with_claim('"x":NaN'), NOT_CLAIMS),
    "nests": (with_claim('"x":' + "[" * 3000), NOT_CLAIMS),
    "other pool": ({"iss": ISSUER[:-1] + "J"}, OTHER_ISSUER),
    "issuer with a slash": ({"iss": ISSUER + "/"}, OTHER_ISSUER),
    "issuer in capitals": ({"iss": ISSUER.upper()}, OTHER_ISSUER),
    "issuer in a list": ({"iss": [ISSUER]}, OTHER_ISSUER),
    "no issuer": ({"iss": ABSENT}, OTHER_ISSUER),
    "access token": (
        {"token_use": "access", "aud": ABSENT, "client_id": CLIENT, "scope": "openid", "username": "mary"},
        NOT_ID_TOKEN,
    ),
    "access token with an audience": ({"token_use": "access"}, NOT_ID_TOKEN),
    "no token_use": ({"token_use": ABSENT}, NOT_ID_TOKEN),
    "token_use in a list": ({"token_use": ["id"]}, NOT_ID_TOKEN),
    "other client": ({"aud": "2example23456789"}, OTHER_CLIENT),
    "client in a list": ({"aud": [CLIENT]}, OTHER_CLIENT),
    "client in an object": ({"aud": {CLIENT: 1}}, OTHER_CLIENT),
    "no audience": ({"aud": ABSENT}, OTHER_CLIENT),
    "empty audience": ({"aud": ""}, OTHER_CLIENT),
    "client_id for aud": ({"aud": ABSENT, "client_id": CLIENT}, OTHER_CLIENT),
    "expired": ({"iat": NOW_S - 3630, "exp": NOW_S - 30}, EXPIRED),
    "expired in 1970": ({"iat": 0, "exp": 1}, EXPIRED),
    "issued in the future": ({"iat": NOW_S + 31}, FUTURE),
    "not valid yet": ({"nbf": NOW_S + 31}, NOT_YET),
    "expires before it was issued": ({"iat": NOW_S, "exp": NOW_S - 10}, BACKWARDS),
    "expires as it was issued": ({"iat": NOW_S, "exp": NOW_S}, BACKWARDS),
    "25 h": ({"exp": NOW_S + 25 * 3600}, TOO_LONG),
    "1 s too long": ({"iat": NOW_S - 1}, TOO_LONG),
    "no exp": ({"exp": ABSENT}, bad_time("exp")),
    "exp is text": ({"exp": str(NOW_S + 60)}, bad_time("exp")),
    "exp is true": ({"exp": True}, bad_time("exp")),
    "exp is null": ({"exp": None}, bad_time("exp")),
    "exp is a list": ({"exp": [NOW_S + 60]}, bad_time("exp")),
    "exp is negative": ({"exp": -1}, bad_time("exp")),
    "exp is 400 digits": ({"exp": 10**400}, bad_time("exp")),
    "exp is infinite": (with_number("exp", "1e400"), bad_time("exp")),
    "no iat": ({"iat": ABSENT}, bad_time("iat")),
    "iat is text": ({"iat": str(NOW_S)}, bad_time("iat")),
    "iat is false": ({"iat": False}, bad_time("iat")),
    "iat is minus infinite": (with_number("iat", "-1e400"), bad_time("iat")),
    "auth_time is text": ({"auth_time": "now"}, bad_time("auth_time")),
    "auth_time is null": ({"auth_time": None}, bad_time("auth_time")),
    "nbf is text": ({"nbf": "0"}, bad_time("nbf")),
    "no sub": ({"sub": ABSENT}, bad_name("sub")),
    "empty sub": ({"sub": ""}, bad_name("sub")),
    "sub is a number": ({"sub": 7}, bad_name("sub")),
    "sub is null": ({"sub": None}, bad_name("sub")),
    "sub is a list": ({"sub": ["mary"]}, bad_name("sub")),
    "long sub": ({"sub": "s" * 129}, bad_name("sub")),
    "sub of two lines": ({"sub": "mary\nadmin"}, bad_name("sub")),
    "sub with NUL": ({"sub": "mary\0"}, bad_name("sub")),
    "sub with a lone surrogate": ({"sub": "mary\ud800"}, bad_name("sub")),
    "sub turns to the left": ({"sub": "\u202eyram"}, bad_name("sub")),
    "no username": ({"cognito:username": ABSENT}, bad_name("cognito:username")),
    "empty username": ({"cognito:username": ""}, bad_name("cognito:username")),
    "username is an object": ({"cognito:username": {}}, bad_name("cognito:username")),
    "origin_jti is a number": ({"origin_jti": 1}, bad_name("origin_jti")),
    "origin_jti is null": ({"origin_jti": None}, bad_name("origin_jti")),
    "groups are text": ({"cognito:groups": "admin"}, BAD_GROUPS),
    "groups are null": ({"cognito:groups": None}, BAD_GROUPS),
    "groups are an object": ({"cognito:groups": {"admin": True}}, BAD_GROUPS),
    "a group is a number": ({"cognito:groups": ["writers", 1]}, BAD_GROUPS),
    "a group is a list": ({"cognito:groups": [["admin"]]}, BAD_GROUPS),
    "a group is empty": ({"cognito:groups": [""]}, BAD_GROUPS),
    "a group is a lone surrogate": ({"cognito:groups": ["\udfff"]}, BAD_GROUPS),
    "101 groups": ({"cognito:groups": [f"g{n}" for n in range(101)]}, BAD_GROUPS),
}


@pytest.mark.promise("id-token-only")
@pytest.mark.parametrize(("claims", "detail"), FORGED_CLAIMS.values(), ids=FORGED_CLAIMS)
async def test_a_token_with_claims_that_are_not_an_id_tokens_is_refused(
    claims: dict[str, Any] | bytes, detail: str, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="service")
    identity = await started_identity(clock, ScriptedIssuer(jwks(jwk(), jwk(SECOND_KEY, "key-2"))))
    authorization = bearer(raw_claims=claims) if isinstance(claims, bytes) else bearer(claims)

    with pytest.raises(Unauthenticated) as refused:
        await identity.authenticate(authorization)

    assert refused.value.detail == detail
    assert caplog.text == ""
    assert identity.cached(authorization) is None
