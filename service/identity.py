"""Identity: a bearer token becomes a `Principal`, or the request is refused.

Called by `api` for all but the health checks; calls `jose` (the token) and `keys` (the issuer's keys).

    Authorization ── cached? ── parse_jws ── key by kid ── verify ── claims ──> Principal, then cached

Invariants:
- An ID token of this issuer for one of our app clients, and nothing else. Nothing turns verification off.
- A claim has one type; a time is a number.
- A token is remembered until it expires, by the hash of its verified signing input and signature: none is
  kept, and only the bytes that were verified are recognised. A change of the issuer's keys forgets all.
- No message holds a piece of the token.

Sources: RFC 6750 (bearer tokens), RFC 7519 (claims), RFC 8725 (best practice), and for what Cognito writes
https://docs.aws.amazon.com/cognito/latest/developerguide/amazon-cognito-user-pools-using-the-id-token.html
"""

import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from service.errors import Unauthenticated
from service.jose import MAX_TOKEN_BYTES, decode_object, parse_jws
from service.keys import IssuerKeys

LEEWAY_S: Final = 30.0
CACHED_TOKENS: Final = 10_000
# Of a username and a group: https://docs.aws.amazon.com/cognito-user-identity-pools/latest/APIReference/API_GroupType.html
MAX_NAME_LENGTH: Final = 128
# Groups of one user, at most: https://docs.aws.amazon.com/cognito/latest/developerguide/quotas.html
MAX_GROUPS: Final = 100
# The year 5138: JSON numbers have no end.
MAX_TIME_S: Final = 1e11


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. `sub` is the user, for ever; `origin_jti` is the sign-in that the token came from."""

    sub: str
    username: str
    groups: tuple[str, ...]
    expires_at_s: float
    origin_jti: str | None


class Identity:
    """Verifies the ID tokens of one issuer.

    Args:
        issuer: What `iss` must be.
        audiences: The app clients; `aud` must be one of them.
        fetch_jwks: Gets the issuer's JWKS; may raise anything.
        now_s: Epoch seconds.
        max_token_s: The longest lifetime (`exp - iat`) that is accepted.
        cached_tokens: How many verified tokens are remembered; the one unseen for longest goes first.
    """

    def __init__(
        self,
        *,
        issuer: str,
        audiences: Collection[str],
        fetch_jwks: Callable[[], Awaitable[bytes]],
        now_s: Callable[[], float],
        max_token_s: float = 3600.0,
        cached_tokens: int = CACHED_TOKENS,
    ) -> None:
        self._issuer = issuer
        self._audiences = frozenset(audiences)
        self._now_s = now_s
        self._max_token_s = max_token_s
        self._cached_tokens = cached_tokens
        self._verified: OrderedDict[bytes, Principal] = OrderedDict()
        self._keys = IssuerKeys(fetch_jwks=fetch_jwks, now_s=now_s, on_change=self._verified.clear)

    @property
    def ready(self) -> bool:
        """Whether the issuer's keys were ever loaded; a later failure takes no process out of service."""
        return self._keys.loaded

    async def start(self) -> None:
        """Load the keys once. A failure is logged and leaves it not ready; never raises."""
        await self._keys.refresh()

    async def refresh_forever(self) -> None:
        """Keep the keys fresh until cancelled."""
        await self._keys.refresh_forever()

    def cached(self, authorization: str | None) -> Principal | None:
        """Return the principal of a token that was verified before and is still good; None proves nothing."""
        if authorization is None:
            return None
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or len(token) > MAX_TOKEN_BYTES or not token.isascii():
            return None
        digest = _digest(token)
        principal = self._verified.get(digest)
        if principal is None:
            return None
        now_s = self._now_s()
        if principal.expires_at_s <= now_s - LEEWAY_S:
            del self._verified[digest]
            return None
        if now_s > self._keys.usable_until_s:
            return None
        self._verified.move_to_end(digest)
        return principal

    async def authenticate(self, authorization: str | None) -> Principal:
        """Verify the value of an `Authorization` header.

        Waits only if the token's key is not here, and then for at most 5 s.

        Raises:
            Unauthenticated: It is not a good ID token; the detail says why and what to do.
            IssuerUnavailable: The issuer's keys were never loaded or are older than 24 h.
        """
        principal = self.cached(authorization)
        if principal is not None:
            return principal
        token = _bearer_token(authorization)
        jws = parse_jws(token)
        key = self._keys.get(jws.kid) or await self._keys.find(jws.kid)
        if key is None:
            raise Unauthenticated(
                "The token is signed with a key that its issuer does not publish; get a new ID token."
            )
        # No await from here on: what is remembered was verified with a key that is in use now.
        jws.verify(key)
        principal = self._principal(jws.payload)
        self._verified[_digest(token)] = principal
        if len(self._verified) > self._cached_tokens:
            self._verified.popitem(last=False)
        return principal

    def _principal(self, payload: bytes) -> Principal:
        try:
            claims = decode_object(payload)
        except ValueError as error:
            raise Unauthenticated("The token's claims are not one JSON object without duplicates.") from error
        if claims.get("iss") != self._issuer:
            raise Unauthenticated(
                "The token comes from another issuer; sign in to this deployment's user pool."
            )
        # Before the audience: an access token has none.
        if claims.get("token_use") != "id":
            raise Unauthenticated(
                "This is not an ID token; send the ID token of the sign-in, not the access token."
            )
        audience = claims.get("aud")
        if not isinstance(audience, str) or audience not in self._audiences:
            raise Unauthenticated(
                "The token is for another app client; sign in through one of this deployment's."
            )
        return Principal(
            expires_at_s=self._expiry_s(claims),
            sub=_name(claims, "sub"),
            username=_name(claims, "cognito:username"),
            groups=_groups(claims),
            origin_jti=_name(claims, "origin_jti") if "origin_jti" in claims else None,
        )

    def _expiry_s(self, claims: Mapping[str, Any]) -> float:
        now_s = self._now_s()
        expires_at_s, issued_at_s = _time_s(claims, "exp"), _time_s(claims, "iat")
        if "auth_time" in claims:
            _time_s(claims, "auth_time")
        if expires_at_s <= now_s - LEEWAY_S:
            raise Unauthenticated(
                "The token has expired; get a new ID token by refreshing or signing in again."
            )
        if issued_at_s > now_s + LEEWAY_S:
            raise Unauthenticated(
                "The token was issued in the future; a clock is wrong, the issuer's or ours."
            )
        if "nbf" in claims and _time_s(claims, "nbf") > now_s + LEEWAY_S:
            raise Unauthenticated("The token is not valid yet; use it later.")
        if expires_at_s <= issued_at_s:
            raise Unauthenticated("The token expires before it was issued; get a new ID token.")
        if expires_at_s - issued_at_s > self._max_token_s:
            raise Unauthenticated(
                f"The token lives longer than {self._max_token_s:g} s; shorten the app client's ID tokens."
            )
        return expires_at_s


def _bearer_token(authorization: str | None) -> str:
    if not authorization:
        raise Unauthenticated(
            "There is no Authorization header; send 'Authorization: Bearer' and the ID token."
        )
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("The Authorization header must be 'Bearer', one space and the ID token.")
    return token


def _digest(token: str) -> bytes:
    # The token is signing input and signature joined by a dot, and parse_jws takes no other spelling of them.
    return hashlib.sha256(token.encode("ascii")).digest()


def _time_s(claims: Mapping[str, Any], claim: str) -> float:
    value: Any = claims.get(claim)
    # By exact type, since True is an int; the comparison refuses infinity too.
    if type(value) not in (int, float) or not 0 <= value <= MAX_TIME_S:
        raise Unauthenticated(f"The token's claim {claim} must be a time in seconds; get a new ID token.")
    return float(value)


def _is_name(value: object) -> bool:
    # Printable: no line break for a log to stumble on, no lone surrogate that a store can't encode.
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME_LENGTH and value.isprintable()


def _name(claims: Mapping[str, Any], claim: str) -> str:
    value = claims.get(claim)
    if not _is_name(value):
        raise Unauthenticated(
            f"The token's claim {claim} must be a text of 1 to {MAX_NAME_LENGTH} characters."
        )
    return str(value)


def _groups(claims: Mapping[str, Any]) -> tuple[str, ...]:
    groups = claims.get("cognito:groups", [])
    if not isinstance(groups, list) or len(groups) > MAX_GROUPS or not all(map(_is_name, groups)):
        raise Unauthenticated(
            f"The token's claim cognito:groups must be a list of at most {MAX_GROUPS} names."
        )
    return tuple(groups)
