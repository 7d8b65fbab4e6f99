"""An issuer for tests: its keys, its JWKS, and the ID tokens that it would write and those it wouldn't.

What it signs is Cognito's: header and claims of an ID token. `token` signs whatever comes of the changes that
a test asks for, so a forgery differs from a good token in what the test names and in nothing else.
"""

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from service.identity import Identity
from tests.clock import START_AT_MS, ManualClock

NOW_S = START_AT_MS // 1000
ISSUER = "https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_AbCdEfGhI"
CLIENT = "1example23456789"
KEY, SECOND_KEY = (rsa.generate_private_key(65537, 2048) for _ in range(2))

ABSENT: Any = object()
HEADER = {"kid": "key-1", "alg": "RS256"}
CLAIMS = {
    "sub": "3c1f9b1e-7d3b-4c0e-9a7d-0a5f6a1b2c3d",
    "cognito:groups": ["writers", "team-é"],
    "email_verified": True,
    "iss": ISSUER,
    "cognito:username": "mary",
    "origin_jti": "9b3e1e52-6c6e-4f1c-9b1e-55d1ee2f0a11",
    "aud": CLIENT,
    "token_use": "id",
    "auth_time": NOW_S,
    "exp": NOW_S + 3600,
    "iat": NOW_S,
    "jti": "ac6e1f5c-8e40-4c9c-8f0d-0c9a0d9c9a0b",
    "email": "mary@example.com",
}

Sign = Callable[[bytes], bytes]


def b64(content: bytes) -> str:
    """Encode as JOSE does."""
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def rs256(key: rsa.RSAPrivateKey = KEY) -> Sign:
    """Return what signs with this key."""
    return lambda signing_input: key.sign(signing_input, padding.PKCS1v15(), hashes.SHA256())


def jwk(key: rsa.RSAPrivateKey = KEY, kid: Any = "key-1", **changes: Any) -> dict[str, Any]:
    """Return the public key as Cognito publishes it, with members changed or left out (ABSENT)."""
    numbers = key.public_key().public_numbers()
    modulus = b64(numbers.n.to_bytes((key.key_size + 7) // 8, "big"))
    return _present(
        {"kid": kid, "kty": "RSA", "alg": "RS256", "use": "sig", "e": "AQAB", "n": modulus} | changes
    )


def jwks(*keys: dict[str, Any]) -> bytes:
    """Return a JWKS of these keys; of none, the one with the first key."""
    return json.dumps({"keys": keys or [jwk()]}).encode()


def token(
    changes: dict[str, Any] | None = None,
    header: dict[str, Any] | None = None,
    *,
    sign: Sign | None = None,
    raw_header: bytes | None = None,
    raw_claims: bytes | None = None,
) -> str:
    """Return a signed token: a good one, but for what is changed, left out (ABSENT) or given as raw bytes."""
    if raw_header is None:
        raw_header = json.dumps(_present(HEADER | (header or {}))).encode()
    if raw_claims is None:
        raw_claims = json.dumps(_present(CLAIMS | (changes or {}))).encode()
    signing_input = f"{b64(raw_header)}.{b64(raw_claims)}"
    return f"{signing_input}.{b64((sign or rs256())(signing_input.encode()))}"


def bearer(changes: dict[str, Any] | None = None, header: dict[str, Any] | None = None, **rest: Any) -> str:
    """Return the value of an `Authorization` header with such a token."""
    return f"Bearer {token(changes, header, **rest)}"


def _present(members: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not ABSENT}


class ScriptedIssuer:
    """Gives out `answer`, a JWKS or an error; while `open` is cleared it holds all answers back."""

    def __init__(self, answer: bytes | Exception | None = None) -> None:
        self.answer = jwks() if answer is None else answer
        self.open = asyncio.Event()
        self.open.set()
        self.fetches = 0
        self.cancelled = 0

    async def fetch_jwks(self) -> bytes:
        """Give the answer of the moment in which it is given."""
        self.fetches += 1
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def started_identity(clock: ManualClock, issuer: ScriptedIssuer, **settings: Any) -> Identity:
    """Return an `Identity` for this issuer and clock after its start."""
    given: dict[str, Any] = {
        "issuer": ISSUER,
        "audiences": (CLIENT,),
        "fetch_jwks": issuer.fetch_jwks,
        "now_s": lambda: clock.now_ms() / 1000,
    }
    identity = Identity(**given | settings)
    await identity.start()
    return identity
