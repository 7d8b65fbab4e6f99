"""The local issuer's tokens have Cognito's shape and hold against their keys."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import jwt
import pytest

from local.issuer import Issuer, create_app

URL = "http://127.0.0.1:8081/local_pool"
NOW_S = 1_795_275_600


def count_up() -> Iterator[str]:
    number = 0
    while True:
        number += 1
        yield f"id-{number}"


@pytest.fixture
def issuer() -> Issuer:
    ids = count_up()
    return Issuer(URL, now=lambda: NOW_S + 0.9, new_id=lambda: next(ids))


def verified(token: str, issuer: Issuer) -> dict[str, Any]:
    """Check the signature with the published key of the token's `kid`, and return the claims."""
    kid = jwt.get_unverified_header(token)["kid"]
    key = next(key for key in jwt.PyJWKSet.from_dict(issuer.jwks()).keys if key.key_id == kid)
    lenient = {"verify_exp": False, "verify_iat": False, "verify_aud": False}
    claims: dict[str, Any] = jwt.decode(token, key, algorithms=["RS256"], options=lenient)  # type: ignore[arg-type]
    return claims


def client_of(issuer: Issuer) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=create_app(issuer))
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8081")


def test_an_id_token_is_shaped_as_cognitos(issuer: Issuer) -> None:
    token = issuer.id_token("ann", groups=["demo", "editors"], expires_in=900)

    assert jwt.get_unverified_header(token) == {"alg": "RS256", "kid": issuer.jwks()["keys"][0]["kid"]}
    assert verified(token, issuer) == {
        "sub": issuer.subject("ann"),
        "iss": URL,
        "aud": "headrace-local",
        "token_use": "id",
        "auth_time": NOW_S,
        "iat": NOW_S,
        "exp": NOW_S + 900,
        "jti": "id-1",
        "origin_jti": "id-2",
        "event_id": "id-3",
        "cognito:username": "ann",
        "cognito:groups": ["demo", "editors"],
        "email": "ann@example.com",
        "email_verified": True,
    }


def test_an_access_token_names_its_client_and_no_audience(issuer: Issuer) -> None:
    claims = verified(issuer.access_token("ann"), issuer)

    assert claims == {
        "sub": issuer.subject("ann"),
        "iss": URL,
        "client_id": "headrace-local",
        "token_use": "access",
        "scope": "openid email",
        "username": "ann",
        "version": 2,
        "auth_time": NOW_S,
        "iat": NOW_S,
        "exp": NOW_S + 3600,
        "jti": "id-1",
        "origin_jti": "id-2",
        "event_id": "id-3",
    }


def test_a_user_has_the_same_sub_in_every_process_and_no_other_has_it() -> None:
    subjects = [Issuer().subject(user) for user in ("ann", "ann", "bob")]

    assert subjects[0] == subjects[1] == "8bce4f6e-0f81-50db-83e4-a45121fc0cbe"
    assert subjects[2] != subjects[0]


def test_a_token_that_has_expired_was_issued_an_hour_before(issuer: Issuer) -> None:
    claims = verified(issuer.id_token(expires_in=-10), issuer)

    assert (claims["iat"], claims["exp"]) == (NOW_S - 3610, NOW_S - 10)


def test_claims_are_replaced_and_left_out(issuer: Issuer) -> None:
    claims = verified(issuer.id_token(claims={"token_use": 1, "aud": None}), issuer)

    assert (claims["token_use"], "aud" in claims) == (1, False)


def test_keys_rotate_and_the_old_ones_stay(issuer: Issuer) -> None:
    before = issuer.id_token()
    kid = issuer.rotate()
    after = issuer.id_token()

    assert jwt.get_unverified_header(after)["kid"] == kid
    assert [verified(token, issuer)["token_use"] for token in (before, after)] == ["id", "id"]
    assert [sorted(key) for key in issuer.jwks()["keys"]] == [["alg", "e", "kid", "kty", "n", "use"]] * 2


async def test_the_keys_are_where_cognito_has_them(issuer: Issuer) -> None:
    async with client_of(issuer) as client:
        configuration = (await client.get("/local_pool/.well-known/openid-configuration")).json()
        keys = (await client.get(configuration["jwks_uri"])).json()

    assert configuration["issuer"] == URL
    assert keys == issuer.jwks()


async def test_anyone_gets_both_tokens_of_the_demo_user(issuer: Issuer) -> None:
    async with client_of(issuer) as client:
        response = await client.post("/token")

    answer = response.json()
    assert (response.status_code, response.headers["cache-control"]) == (200, "no-store")
    assert (answer["token_type"], answer["expires_in"]) == ("Bearer", 3600)
    assert verified(answer["id_token"], issuer)["cognito:groups"] == ["demo"]
    assert verified(answer["access_token"], issuer)["username"] == "demo"


@pytest.mark.parametrize("form", [False, True])
async def test_what_is_asked_for_is_in_the_token(issuer: Issuer, form: bool) -> None:
    asked = {"user": "bob", "groups": ["a", "b"], "token_use": "id", "expires_in": 60, "audience": "other"}
    async with client_of(issuer) as client:
        response = (
            await client.post("/token", data=asked) if form else await client.post("/token", json=asked)
        )

    answer = response.json()
    claims = verified(answer["id_token"], issuer)
    assert sorted(answer) == ["expires_in", "id_token", "token_type"]
    assert claims["sub"] == issuer.subject("bob")
    assert (claims["cognito:groups"], claims["aud"], claims["exp"]) == (["a", "b"], "other", NOW_S + 60)


@pytest.mark.parametrize(
    ("body", "description"),
    [
        ("{", "the body is neither JSON nor a form"),
        ("[]", "the body must be an object"),
        ('{"admin": true}', "unknown: admin"),
        ('{"user": ""}', "user must be a text"),
        ('{"audience": 1}', "audience must be a text"),
        ('{"groups": "demo"}', "groups must be a list of texts"),
        ('{"expires_in": "60"}', "expires_in must be a whole number of seconds"),
        ('{"token_use": "refresh"}', "token_use must be id or access"),
    ],
)
async def test_a_wrong_request_for_a_token_is_refused(issuer: Issuer, body: str, description: str) -> None:
    async with client_of(issuer) as client:
        response = await client.post("/token", content=body)

    assert (response.status_code, json.loads(response.text)) == (
        400,
        {"error": "invalid_request", "error_description": description},
    )
