"""ID tokens as Cognito writes them, and the memory of those that were verified."""

from typing import Any

import pytest

from service.errors import Unauthenticated
from service.identity import Principal
from tests.clock import ManualClock
from tests.id_tokens import (
    ABSENT,
    CLIENT,
    NOW_S,
    SECOND_KEY,
    ScriptedIssuer,
    bearer,
    jwk,
    jwks,
    rs256,
    started_identity,
    token,
)

GOOD = token()
MARY = Principal(
    sub="3c1f9b1e-7d3b-4c0e-9a7d-0a5f6a1b2c3d",
    username="mary",
    groups=("writers", "team-é"),
    expires_at_s=NOW_S + 3600.0,
    origin_jti="9b3e1e52-6c6e-4f1c-9b1e-55d1ee2f0a11",
)


@pytest.mark.promise("id-token-only")
async def test_an_id_token_makes_its_principal(clock: ManualClock) -> None:
    identity = await started_identity(clock, ScriptedIssuer())

    assert await identity.authenticate(f"Bearer {GOOD}") == MARY


GOOD_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "scheme in lower case": (f"bearer {GOOD}", {}),
    "typ in the header": (bearer(header={"typ": "JWT"}), {}),
    "signed with the second key": (bearer(header={"kid": "key-2"}, sign=rs256(SECOND_KEY)), {}),
    "no groups": (bearer({"cognito:groups": ABSENT}), {"groups": ()}),
    "no origin_jti": (bearer({"origin_jti": ABSENT}), {"origin_jti": None}),
    "no auth_time": (bearer({"auth_time": ABSENT}), {}),
    "the other client of ours": (bearer({"aud": "another-client"}), {}),
    "expired within the leeway": (
        bearer({"iat": NOW_S - 629, "exp": NOW_S - 29}),
        {"expires_at_s": NOW_S - 29.0},
    ),
    "issued ahead within the leeway": (
        bearer({"iat": NOW_S + 30, "nbf": NOW_S + 30, "exp": NOW_S + 630}),
        {"expires_at_s": NOW_S + 630.0},
    ),
    "fractions of seconds": (
        bearer({"iat": NOW_S + 0.25, "exp": NOW_S + 60.5}),
        {"expires_at_s": NOW_S + 60.5},
    ),
    "longest names": (
        bearer({"sub": "s" * 128, "cognito:username": "ü" * 128}),
        {"sub": "s" * 128, "username": "ü" * 128},
    ),
    "most groups": (
        bearer({"cognito:groups": [f"group-{n}" for n in range(100)]}),
        {"groups": tuple(f"group-{n}" for n in range(100))},
    ),
}


@pytest.mark.parametrize(("authorization", "changes"), GOOD_VARIANTS.values(), ids=GOOD_VARIANTS)
async def test_what_an_issuer_may_vary_is_accepted(
    authorization: str, changes: dict[str, Any], clock: ManualClock
) -> None:
    issuer = ScriptedIssuer(jwks(jwk(), jwk(SECOND_KEY, "key-2")))
    identity = await started_identity(clock, issuer, audiences=("another-client", CLIENT))

    principal = await identity.authenticate(authorization)

    expected = {name: getattr(MARY, name) for name in Principal.__slots__} | changes
    assert principal == Principal(**expected)


async def test_a_longer_lifetime_is_accepted_where_the_deployment_says_so(clock: ManualClock) -> None:
    identity = await started_identity(clock, ScriptedIssuer(), max_token_s=86_400.0)

    principal = await identity.authenticate(bearer({"exp": NOW_S + 86_400}))

    assert principal.expires_at_s == NOW_S + 86_400


async def test_a_verified_token_is_recognised_without_verifying_it_again(clock: ManualClock) -> None:
    identity = await started_identity(clock, ScriptedIssuer())
    before = identity.cached(f"Bearer {GOOD}")

    principal = await identity.authenticate(f"Bearer {GOOD}")

    assert before is None
    assert identity.cached(f"Bearer {GOOD}") is principal
    assert identity.cached(f"bearer {GOOD}") is principal
    assert await identity.authenticate(f"Bearer {GOOD}") is principal


OTHER_SPELLINGS = {
    "no header": None,
    "empty header": "",
    "scheme alone": "Bearer",
    "empty token": "Bearer ",
    "no scheme": GOOD,
    "other scheme": f"Basic {GOOD}",
    "two spaces": f"Bearer  {GOOD}",
    "padding": f"Bearer {GOOD}==",
    "newline": f"Bearer {GOOD}\n",
    "extra dot": f"Bearer {GOOD}.",
    "latin-1 byte": f"Bearer {GOOD}\xa0",
    "lone surrogate": f"Bearer {GOOD}\ud800",
    "stray bits": f"Bearer {GOOD[:-1]}B",
    "longer": f"Bearer {GOOD}{'A' * 8192}",
}


@pytest.mark.parametrize("authorization", OTHER_SPELLINGS.values(), ids=OTHER_SPELLINGS)
async def test_only_the_very_bytes_that_were_verified_are_recognised(
    authorization: str | None, clock: ManualClock
) -> None:
    identity = await started_identity(clock, ScriptedIssuer())
    await identity.authenticate(f"Bearer {GOOD}")

    assert identity.cached(authorization) is None
    with pytest.raises(Unauthenticated):
        await identity.authenticate(authorization)


async def test_a_verified_token_is_refused_once_it_has_expired(clock: ManualClock) -> None:
    identity = await started_identity(clock, ScriptedIssuer())
    principal = await identity.authenticate(f"Bearer {GOOD}")
    await clock.advance(3629)
    within_leeway = identity.cached(f"Bearer {GOOD}")

    await clock.advance(1)

    assert within_leeway is principal
    assert identity.cached(f"Bearer {GOOD}") is None
    with pytest.raises(Unauthenticated) as refused:
        await identity.authenticate(f"Bearer {GOOD}")
    assert (
        refused.value.detail == "The token has expired; get a new ID token by refreshing or signing in again."
    )


async def test_of_too_many_verified_tokens_the_one_unseen_for_longest_is_forgotten(
    clock: ManualClock,
) -> None:
    identity = await started_identity(clock, ScriptedIssuer(), cached_tokens=2)
    first, second, third = (bearer({"jti": str(n)}) for n in range(3))
    await identity.authenticate(first)
    await identity.authenticate(second)
    await identity.authenticate(first)

    await identity.authenticate(third)

    assert [identity.cached(seen) is not None for seen in (first, second, third)] == [True, False, True]
    assert await identity.authenticate(second) == MARY
