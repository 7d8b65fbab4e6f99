"""A token issuer with the shape of a Cognito user pool: its keys, its ID tokens, its access tokens.

``python -m local.issuer`` is a process of the local stack; tests also use `Issuer` without any server::

    GET  /local_pool/.well-known/jwks.json             the public keys
    GET  /local_pool/.well-known/openid-configuration  where they are
    POST /token                                        tokens for anyone who asks: a demo has no passwords
    GET  /ready

`POST /token` takes JSON or a form, all members optional: ``{"user": "demo", "groups": ["demo"],
"token_use": "id", "expires_in": 3600, "audience": "headrace-local"}``. Without `token_use` it gives both
tokens, with it only that one. A negative `expires_in` gives a token that has expired, another `audience`
one that is refused: that is what they are for. Keys are made at start and never leave the process; a
restart makes all tokens void.

Sources:
https://docs.aws.amazon.com/cognito/latest/developerguide/amazon-cognito-user-pools-using-the-id-token.html
and
https://docs.aws.amazon.com/cognito/latest/developerguide/amazon-cognito-user-pools-using-the-access-token.html
"""

import argparse
import hashlib
import json
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final
from urllib.parse import parse_qs
from uuid import NAMESPACE_URL, uuid4, uuid5

import jwt
import uvicorn
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

POOL: Final = "local_pool"
AUDIENCE: Final = "headrace-local"
LIFETIME_S: Final = 3600
"""What Cognito gives an ID token unless the app client says otherwise."""


class Issuer:
    """Signs tokens for the pool at `url`; `now` is the wall clock in seconds."""

    def __init__(
        self,
        url: str = f"http://127.0.0.1:8081/{POOL}",
        *,
        audience: str = AUDIENCE,
        now: Callable[[], float] = time.time,
        new_id: Callable[[], str] = lambda: str(uuid4()),
    ) -> None:
        self.url = url
        self.jwks_url = f"{url}/.well-known/jwks.json"
        self._audience = audience
        self._now = now
        self._new_id = new_id
        self._keys: list[tuple[str, rsa.RSAPrivateKey]] = []
        self.rotate()

    def rotate(self) -> str:
        """Sign with a new key from now on and return its `kid`; the older ones stay in the key set."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        public = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
        # RFC 7638: the digest of the required members, in order.
        digest = hashlib.sha256(
            json.dumps({name: public[name] for name in ("e", "kty", "n")}, separators=(",", ":")).encode()
        ).digest()
        kid = urlsafe_b64encode(digest).rstrip(b"=").decode()
        self._keys.append((kid, key))
        return kid

    def jwks(self) -> dict[str, Any]:
        """Return the public keys as Cognito publishes them."""
        keys = []
        for kid, key in self._keys:
            public = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
            keys.append(
                {
                    "alg": "RS256",
                    "e": public["e"],
                    "kid": kid,
                    "kty": "RSA",
                    "n": public["n"],
                    "use": "sig",
                }
            )
        return {"keys": keys}

    def id_token(
        self,
        user: str = "demo",
        *,
        groups: Sequence[str] = (),
        expires_in: float = LIFETIME_S,
        audience: str | None = None,
        claims: Mapping[str, Any] | None = None,
    ) -> str:
        """Return an ID token; `claims` replace what it would say, a claim that is None is left out."""
        own = {
            "aud": audience or self._audience,
            "token_use": "id",
            "cognito:username": user,
            "email": f"{user}@example.com",
            "email_verified": True,
        }
        return self._token(user, groups, expires_in, own, claims)

    def access_token(
        self,
        user: str = "demo",
        *,
        groups: Sequence[str] = (),
        expires_in: float = LIFETIME_S,
        audience: str | None = None,
        claims: Mapping[str, Any] | None = None,
    ) -> str:
        """Return an access token, which the service must refuse; it has a `client_id` and no `aud`."""
        own = {
            "client_id": audience or self._audience,
            "token_use": "access",
            "scope": "openid email",
            "username": user,
            "version": 2,
        }
        return self._token(user, groups, expires_in, own, claims)

    def subject(self, user: str) -> str:
        """Return the `sub` of a user: the same for the same name, in every process."""
        return str(uuid5(NAMESPACE_URL, f"{POOL}/{user}"))

    def _token(
        self,
        user: str,
        groups: Sequence[str],
        expires_in: float,
        own: Mapping[str, Any],
        claims: Mapping[str, Any] | None,
    ) -> str:
        now = int(self._now())
        # Issued before it expires, also when it has expired already, as a real one would have been.
        issued = now if expires_in > 0 else now + int(expires_in) - LIFETIME_S
        payload = {
            "sub": self.subject(user),
            "iss": self.url,
            "auth_time": issued,
            "iat": issued,
            "exp": now + int(expires_in),
            "jti": self._new_id(),
            "origin_jti": self._new_id(),
            "event_id": self._new_id(),
            **({"cognito:groups": list(groups)} if groups else {}),
            **own,
            **(claims or {}),
        }
        kid, key = self._keys[-1]
        stated = {name: value for name, value in payload.items() if value is not None}
        return jwt.encode(stated, key, algorithm="RS256", headers={"kid": kid, "typ": None})


class _BadRequest(Exception):
    """What is asked for is not a token request; the text says why."""


def create_app(issuer: Issuer) -> Starlette:
    """Return the issuer as a web application."""

    async def jwks(_: Request) -> JSONResponse:
        return JSONResponse(issuer.jwks(), headers={"Cache-Control": "public, max-age=86400"})

    async def openid_configuration(_: Request) -> JSONResponse:
        return JSONResponse(
            {
                "id_token_signing_alg_values_supported": ["RS256"],
                "issuer": issuer.url,
                "jwks_uri": issuer.jwks_url,
                "subject_types_supported": ["public"],
            }
        )

    async def token(request: Request) -> JSONResponse:
        try:
            asked = _token_request(await request.body(), request.headers.get("content-type", ""))
        except _BadRequest as error:
            return JSONResponse(
                {"error": "invalid_request", "error_description": str(error)}, status_code=400
            )
        use = asked.pop("token_use", None)
        tokens: dict[str, Any] = {}
        if use != "access":
            tokens["id_token"] = issuer.id_token(**asked)
        if use != "id":
            tokens["access_token"] = issuer.access_token(**asked)
        answer = {**tokens, "token_type": "Bearer", "expires_in": asked["expires_in"]}
        return JSONResponse(answer, headers={"Cache-Control": "no-store"})

    async def ready(_: Request) -> JSONResponse:
        return JSONResponse({"status": "ready"})

    return Starlette(
        routes=[
            Route(f"/{POOL}/.well-known/jwks.json", jwks),
            Route(f"/{POOL}/.well-known/openid-configuration", openid_configuration),
            Route("/token", token, methods=["POST"]),
            Route("/ready", ready),
        ]
    )


def _token_request(body: bytes, content_type: str) -> dict[str, Any]:
    """Return the arguments of `Issuer.id_token`, and `token_use` if it is asked for."""
    try:
        if content_type.partition(";")[0].strip() == "application/x-www-form-urlencoded":
            form = parse_qs(body.decode(), keep_blank_values=True, strict_parsing=bool(body))
            given: Any = {name: values if name == "groups" else values[-1] for name, values in form.items()}
            with suppress(KeyError):
                given["expires_in"] = int(given["expires_in"])
        else:
            given = json.loads(body or b"{}")
    except ValueError as error:
        raise _BadRequest("the body is neither JSON nor a form") from error
    if not isinstance(given, dict):
        raise _BadRequest("the body must be an object")
    asked = {"user": "demo", "groups": ["demo"], "expires_in": LIFETIME_S, **given}
    if unknown := asked.keys() - {"user", "groups", "token_use", "expires_in", "audience"}:
        raise _BadRequest(f"unknown: {', '.join(sorted(unknown))}")
    for name in ("user", "audience"):
        if name in asked and not (isinstance(asked[name], str) and asked[name]):
            raise _BadRequest(f"{name} must be a text")
    if not isinstance(asked["groups"], list) or not all(isinstance(name, str) for name in asked["groups"]):
        raise _BadRequest("groups must be a list of texts")
    if type(asked["expires_in"]) is not int:
        raise _BadRequest("expires_in must be a whole number of seconds")
    if asked.get("token_use") not in (None, "id", "access"):
        raise _BadRequest("token_use must be id or access")
    return asked


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m local.issuer", description="A Cognito-shaped issuer.")
    parser.add_argument("--port", type=int, default=8081)
    port = parser.parse_args().port
    issuer = Issuer(f"http://127.0.0.1:{port}/{POOL}")
    # No access log: it would grow with every look at the keys.
    uvicorn.run(create_app(issuer), host="127.0.0.1", port=port, access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
