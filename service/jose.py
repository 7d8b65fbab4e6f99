"""Signed tokens and key sets, read strictly: the compact JWS, the JWKS, and their base64url and JSON.

Called by `identity` (tokens, claims) and `keys` (key sets). Pure: no clock, no I/O.

Invariants:
- RS256 and nothing else, by a key that is published for it and nothing else.
- Whatever has two readings is refused: a token has exactly one spelling, a JSON object no member twice.
- No message holds a piece of what was read.

PyJWT is not used. Restricted to RS256 it still takes keys published for encryption or for another algorithm,
padding, duplicate claims, times as strings and tokens of a megabyte. With these ruled out here, what is left
for a library is the RSA signature, and that is checked by `cryptography`, which PyJWT would call too.

Sources: RFC 7515 (JWS), RFC 7517 (JWK), RFC 7518 sections 3.3 and 6.3 (RSA), RFC 8725 (best practice),
RFC 4648 section 3.5 (canonical base64).
"""

import binascii
import json
import logging
from typing import Any, Final, NamedTuple, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey, RSAPublicNumbers
from cryptography.hazmat.primitives.hashes import SHA256

from service.errors import Unauthenticated

MAX_TOKEN_BYTES: Final = 8 * 1024
MAX_JWKS_BYTES: Final = 64 * 1024
MAX_KID_LENGTH: Final = 256
# "A key of size 2048 bits or larger MUST be used": https://www.rfc-editor.org/rfc/rfc7518#section-3.3
MIN_MODULUS_BITS: Final = 2048
# `crit` and `b64` change what is signed (RFC 7515 section 4.1.11, RFC 7797); the others bring a key along.
REFUSED_HEADERS: Final = frozenset({"crit", "b64", "jku", "jwk", "x5u", "x5c"})
# RFC 7518 sections 6.3.2 and 6.4.1. An issuer that publishes its private key has lost it.
PRIVATE_MEMBERS: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})

_PADDING: Final = PKCS1v15()
_SHA256: Final = SHA256()
_NOT_COMPACT: Final = (
    "The token is not a JWT in compact form (three base64url parts joined by dots);"
    " send the ID token exactly as it was issued."
)

logger = logging.getLogger(__name__)


class Jws(NamedTuple):
    """A JWS in compact form, taken apart; nothing in it is to be trusted before `verify`."""

    kid: str
    signing_input: bytes
    payload: bytes
    signature: bytes

    def verify(self, key: RSAPublicKey) -> None:
        """Check the signature.

        Raises:
            Unauthenticated: It was not made with this key over this header and payload.
        """
        try:
            key.verify(self.signature, self.signing_input, _PADDING, _SHA256)
        except InvalidSignature as error:
            raise Unauthenticated(
                "The token's signature is wrong; send the ID token exactly as it was issued."
            ) from error


def parse_jws(token: str) -> Jws:
    """Take apart a JWS in compact form (RFC 7515 section 7.1) that says RS256 and names its key.

    Raises:
        Unauthenticated: It is anything else, or larger than 8 KB.
    """
    if len(token) > MAX_TOKEN_BYTES:
        raise Unauthenticated("The token is larger than 8 KB; map fewer attributes or groups into it.")
    segments = token.encode("ascii").split(b".") if token.isascii() else []
    if len(segments) != 3:
        raise Unauthenticated(_NOT_COMPACT)
    try:
        header = decode_object(decode_base64url(segments[0]))
        payload, signature = decode_base64url(segments[1]), decode_base64url(segments[2])
    except ValueError as error:
        raise Unauthenticated(_NOT_COMPACT) from error
    if header.get("alg") != "RS256":
        raise Unauthenticated(
            "The token is not signed with RS256; send the ID token that the issuer gave you."
        )
    if not REFUSED_HEADERS.isdisjoint(header):
        raise Unauthenticated("The token's header has members that no ID token of this issuer has.")
    kid = header.get("kid")
    if not isinstance(kid, str) or not kid:
        raise Unauthenticated("The token's header does not name the key that it is signed with.")
    return Jws(kid, segments[0] + b"." + segments[1], payload, signature)


class UnusableKeys(ValueError):
    """A JWKS, or a key in it, is not what verification needs; the message is ours and may be logged."""


def parse_jwks(body: bytes) -> dict[str, RSAPublicKey]:
    """Return by key id the keys of a JWKS that may verify RS256; a key that may not is logged and skipped.

    Raises:
        UnusableKeys: It is not a JWKS, names a key id twice, or has no such key at all.
    """
    if len(body) > MAX_JWKS_BYTES:
        raise UnusableKeys("the JWKS is larger than 64 KB")
    try:
        entries = decode_object(body).get("keys")
    except ValueError as error:
        raise UnusableKeys("the JWKS is not a JSON object") from error
    if not isinstance(entries, list):
        raise UnusableKeys("the JWKS has no list of keys")
    kids = [jwk["kid"] for jwk in entries if isinstance(jwk, dict) and isinstance(jwk.get("kid"), str)]
    if len(kids) != len(set(kids)):
        raise UnusableKeys("the JWKS names a key id twice")
    keys: dict[str, RSAPublicKey] = {}
    for jwk in entries:
        try:
            kid, key = _verification_key(jwk)
        except UnusableKeys as fault:
            logger.warning("issuer key skipped", extra={"fault": str(fault)})
        else:
            keys[kid] = key
    if not keys:
        raise UnusableKeys("the JWKS has no RSA key for RS256 signatures")
    return keys


def _verification_key(jwk: Any) -> tuple[str, RSAPublicKey]:
    if not isinstance(jwk, dict) or jwk.get("kty") != "RSA":
        raise UnusableKeys("the key is not an RSA key")
    kid = jwk.get("kid")
    if not isinstance(kid, str) or not 0 < len(kid) <= MAX_KID_LENGTH:
        raise UnusableKeys("the key has no id")
    # RFC 7517 sections 4.2 to 4.4: what the key's owner says it is for.
    key_ops = jwk.get("key_ops", ["verify"])
    if jwk.get("use", "sig") != "sig" or not isinstance(key_ops, list) or "verify" not in key_ops:
        raise UnusableKeys("the key is not for signatures")
    if jwk.get("alg", "RS256") != "RS256":
        raise UnusableKeys("the key is for another algorithm")
    if not PRIVATE_MEMBERS.isdisjoint(jwk):
        raise UnusableKeys("the key is published with its private part")
    try:
        key = RSAPublicNumbers(e=_unsigned(jwk.get("e")), n=_unsigned(jwk.get("n"))).public_key()
    except ValueError as error:
        raise UnusableKeys("the key's numbers are missing or wrong") from error
    if key.key_size < MIN_MODULUS_BITS:
        raise UnusableKeys("the key has fewer than 2048 bits")
    return kid, key


def _unsigned(value: object) -> int:
    if not isinstance(value, str):
        raise ValueError("not text")  # noqa: TRY004 - what was read is wrong, not how this was called
    return int.from_bytes(decode_base64url(value.encode("ascii")), "big")


_TO_STANDARD: Final = bytes.maketrans(b"-_", b"+/")
_TO_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")


def decode_base64url(segment: bytes) -> bytes:
    """Decode base64url as JOSE writes it: no padding, whitespace or other character, no stray trailing bits.

    Raises:
        ValueError: It is not the one spelling of its content.
    """
    content = binascii.a2b_base64(segment.translate(_TO_STANDARD) + b"==")
    # binascii skips what it does not know and drops trailing bits; only what it would write itself is taken.
    if binascii.b2a_base64(content, newline=False).translate(_TO_URL_SAFE).rstrip(b"=") != segment:
        raise ValueError("not canonical base64url")
    return content


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is there twice")
    return members


def _refuse_constant(_name: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


# Built once: json.loads() with hooks builds a decoder for every call.
_DECODER: Final = json.JSONDecoder(object_pairs_hook=_members, parse_constant=_refuse_constant)


def decode_object(text: bytes) -> dict[str, Any]:
    """Decode a JSON object in UTF-8 that has no member twice, at any depth, and neither NaN nor Infinity.

    Raises:
        ValueError: It is something else.
    """
    try:
        members = _DECODER.decode(text.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(members, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - what was read is wrong, not how this was called
    return members
