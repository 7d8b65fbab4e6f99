"""The Cognito authorizer of the local gateway: an ID token of the pool, for one of its clients, or nothing.

`gateway` asks it for each request of a method that has one. It looks at the signature (the issuer's keys,
fetched again for an unknown one), `iss`, `exp`, `token_use` and `aud`, and at no group. A token that it has
let in it lets in for `ttl_s` more without a look, expired or not, as API Gateway does:
https://docs.aws.amazon.com/apigateway/latest/developerguide/apigateway-integrate-with-cognito.html.
It is not the service's verification, which comes after it and shares no code with it.
"""

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any, Final

import aiohttp
import jwt

from local.gateway_api import Authorizer, Refused

_USE: Final = "id"
_REFETCH_S: Final = 1.0
_MAX_REMEMBERED: Final = 10_000


class IssuerKeys:
    """The public keys of an issuer, by id."""

    def __init__(self, session: aiohttp.ClientSession, issuer: str) -> None:
        self._session = session
        self._url = f"{issuer}/.well-known/jwks.json"
        self._keys: dict[str, Any] = {}
        self._next_fetch_s = 0.0

    async def key(self, kid: str) -> Any | None:
        """Return a key; None if the issuer has none of this id.

        Raises:
            Refused: The issuer does not answer.
        """
        now_s = asyncio.get_running_loop().time()
        if kid not in self._keys and now_s >= self._next_fetch_s:
            try:
                async with self._session.get(self._url) as response:
                    response.raise_for_status()
                    published = jwt.PyJWKSet.from_dict(await response.json())
            except (aiohttp.ClientError, TimeoutError, jwt.PyJWTError) as error:
                raise Refused("AUTHORIZER_CONFIGURATION_ERROR") from error
            self._next_fetch_s = now_s + _REFETCH_S
            self._keys = {str(each.key_id): each.key for each in published.keys}
        return self._keys.get(kid)


class Tokens:
    """Says which tokens an authorizer lets in."""

    def __init__(
        self, authorizer: Authorizer, issuer: str, keys: IssuerKeys, now: Callable[[], float]
    ) -> None:
        self._authorizer = authorizer
        self._issuer = issuer
        self._keys = keys
        self._now = now
        self._let_in_until_s: dict[bytes, float] = {}

    async def check(self, value: str | None) -> None:
        """Look at the value of the authorizer's header, `Bearer` before it or not.

        Raises:
            Refused: It is no token that may go on, or the issuer does not answer.
        """
        token = (value or "").removeprefix("Bearer ").strip()
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        now_s = asyncio.get_running_loop().time()
        if now_s < self._let_in_until_s.get(digest, 0.0):
            return
        if not await self._is_good(token):
            raise Refused("UNAUTHORIZED")
        if len(self._let_in_until_s) >= _MAX_REMEMBERED:
            self._let_in_until_s.clear()
        self._let_in_until_s[digest] = now_s + self._authorizer.ttl_s

    async def _is_good(self, token: str) -> bool:
        try:
            key = await self._keys.key(str(jwt.get_unverified_header(token).get("kid")))
            if key is None:
                return False
            claims = jwt.decode(
                token,
                key,
                algorithms=["RS256"],
                issuer=self._issuer,
                options={
                    "require": ["exp", "iss", "aud", "token_use"],
                    "verify_aud": False,  # by the authorizer's expression, below
                    "verify_exp": False,  # by our own clock, below
                    "verify_iat": False,
                    "verify_nbf": False,
                },
            )
        except jwt.PyJWTError:
            return False
        # The expression alone says how much of `aud` it must match: ours has its own anchors.
        expression = self._authorizer.audience
        is_for_us = expression is None or expression.search(str(claims["aud"])) is not None
        return claims["exp"] > self._now() and claims["token_use"] == _USE and is_for_us
