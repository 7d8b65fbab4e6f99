"""The issuer's keys over time: rotation, outages, stale serving, and who fetches how often."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from service.errors import IssuerUnavailable, Unauthenticated
from service.identity import Identity
from tests.clock import ManualClock
from tests.id_tokens import (
    KEY,
    NOW_S,
    SECOND_KEY,
    ScriptedIssuer,
    bearer,
    jwk,
    jwks,
    rs256,
    started_identity,
)

UNKNOWN_KEY = "The token is signed with a key that its issuer does not publish; get a new ID token."
BAD_SIGNATURE = "The token's signature is wrong; send the ID token exactly as it was issued."
BOTH_KEYS = jwks(jwk(), jwk(SECOND_KEY, "key-2"))

# Good for as long as a test needs; the tests of lifetimes are elsewhere.
LONG = {"exp": NOW_S + 3 * 86_400}
BY_FIRST = bearer(LONG)
BY_SECOND = bearer(LONG, {"kid": "key-2"}, sign=rs256(SECOND_KEY))


async def started(clock: ManualClock, issuer: ScriptedIssuer) -> Identity:
    return await started_identity(clock, issuer, max_token_s=3 * 86_400.0)


@asynccontextmanager
async def refreshing(identity: Identity) -> AsyncIterator[None]:
    """Run the background refresh as the application does."""
    task = asyncio.create_task(identity.refresh_forever())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
    assert task.cancelled()


async def refusal(identity: Identity, authorization: str) -> str:
    with pytest.raises(Unauthenticated) as refused:
        await identity.authenticate(authorization)
    return refused.value.detail


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, str]]:
    return [(r.levelname, r.getMessage(), vars(r)["fault"]) for r in caplog.records]


NOT_A_JWKS: dict[str, tuple[bytes | Exception, str]] = {
    "empty": (b"", "the JWKS is not a JSON object"),
    "an error page": (b"<html>503</html>", "the JWKS is not a JSON object"),
    "cut": (BOTH_KEYS[:-1], "the JWKS is not a JSON object"),
    "a list": (b"[]", "the JWKS is not a JSON object"),
    "keys twice": (b'{"keys":[],' + BOTH_KEYS[1:], "the JWKS is not a JSON object"),
    "not UTF-8": (b"\xff\xfe", "the JWKS is not a JSON object"),
    "an error document": (b'{"message":"User pool does not exist."}', "the JWKS has no list of keys"),
    "keys are an object": (b'{"keys":{}}', "the JWKS has no list of keys"),
    "no keys": (b'{"keys":[]}', "the JWKS has no RSA key for RS256 signatures"),
    "no usable key": (jwks(jwk(use="enc")), "the JWKS has no RSA key for RS256 signatures"),
    "a key id twice": (jwks(jwk(SECOND_KEY), jwk(KEY)), "the JWKS names a key id twice"),
    "a key twice": (jwks(jwk(), jwk()), "the JWKS names a key id twice"),
    "the id of an unusable key twice": (
        jwks(jwk(), jwk(SECOND_KEY, use="enc")),
        "the JWKS names a key id twice",
    ),
    "65 KB": (BOTH_KEYS + b" " * 65_536, "the JWKS is larger than 64 KB"),
    "unreachable": (ConnectionRefusedError("10.0.0.1:443"), "ConnectionRefusedError"),
    "anything": (KeyError("secret"), "KeyError"),
}


@pytest.mark.parametrize(("answer", "fault"), NOT_A_JWKS.values(), ids=NOT_A_JWKS)
async def test_a_start_without_keys_is_logged_and_not_ready(
    answer: bytes | Exception, fault: str, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    identity = await started(clock, ScriptedIssuer(answer))

    assert not identity.ready
    assert warnings_of(caplog)[-1] == ("WARNING", "issuer keys not loaded", fault)
    with pytest.raises(IssuerUnavailable) as refused:
        await identity.authenticate(BY_FIRST)
    assert (refused.value.detail, refused.value.retry_after_s) == (
        "The token issuer's keys can't be loaded at the moment; try again.",
        5.0,
    )


@pytest.mark.parametrize(("answer", "fault"), NOT_A_JWKS.values(), ids=NOT_A_JWKS)
async def test_a_failed_refresh_leaves_the_keys_in_use(
    answer: bytes | Exception, fault: str, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    issuer = ScriptedIssuer()
    identity = await started(clock, issuer)
    principal = await identity.authenticate(BY_FIRST)
    issuer.answer = answer

    async with refreshing(identity):
        await clock.advance(3600)

    assert issuer.fetches > 1
    assert warnings_of(caplog)[-1] == ("WARNING", "issuer keys not loaded", fault)
    assert identity.ready
    assert identity.cached(BY_FIRST) is principal
    assert await identity.authenticate(bearer({"jti": "new"} | LONG)) == principal


async def test_an_issuer_that_is_down_at_the_start_is_asked_until_it_answers(clock: ManualClock) -> None:
    issuer = ScriptedIssuer(ConnectionRefusedError())
    identity = await started(clock, issuer)
    async with refreshing(identity):
        await clock.advance(0.7)
        too_early = (issuer.fetches, identity.ready)
        issuer.answer = jwks()

        await clock.advance(0.3)

        assert too_early == (1, False)
        assert identity.ready
        assert (await identity.authenticate(BY_FIRST)).username == "mary"


async def test_an_issuer_that_has_recovered_is_asked_every_hour_again(clock: ManualClock) -> None:
    issuer = ScriptedIssuer(ConnectionRefusedError())
    identity = await started(clock, issuer)
    issuer.answer = jwks()
    async with refreshing(identity):
        await clock.advance(1)

        await clock.advance(2878)

        assert issuer.fetches == 2


async def test_a_failing_issuer_is_asked_ever_less_often_until_once_a_minute(clock: ManualClock) -> None:
    issuer = ScriptedIssuer(ConnectionRefusedError())
    identity = await started(clock, issuer)
    counts = []

    async with refreshing(identity):
        for pause_s in (1, 2, 4, 8, 16, 32, 60, 60):
            await clock.advance(pause_s)
            counts.append(issuer.fetches)
        await clock.advance(3600)

    # Each pause is 80 to 100 % of these: not enough for one fetch more or less.
    assert counts == [2, 3, 4, 5, 6, 7, 8, 9]
    assert 60 <= issuer.fetches - counts[-1] <= 76


async def test_keys_are_refreshed_every_hour(clock: ManualClock) -> None:
    issuer = ScriptedIssuer()
    identity = await started(clock, issuer)
    async with refreshing(identity):
        await clock.advance(2879)
        before = issuer.fetches

        await clock.advance(721)

        assert (before, issuer.fetches) == (1, 2)


async def test_keys_are_served_stale_for_24_h_and_no_longer(clock: ManualClock) -> None:
    issuer = ScriptedIssuer()
    identity = await started(clock, issuer)
    principal = await identity.authenticate(BY_FIRST)
    issuer.answer = ConnectionRefusedError()
    await clock.advance(86_400)
    still = await identity.authenticate(bearer({"jti": "new"} | LONG))

    await clock.advance(1)

    assert still == principal
    assert identity.cached(BY_FIRST) is None
    with pytest.raises(IssuerUnavailable):
        await identity.authenticate(BY_FIRST)
    assert identity.ready


async def test_an_issuer_that_comes_back_after_24_h_is_served_again(clock: ManualClock) -> None:
    issuer = ScriptedIssuer()
    identity = await started(clock, issuer)
    await clock.advance(86_401)

    principal = await identity.authenticate(BY_FIRST)

    assert principal.username == "mary"
    assert issuer.fetches == 2


async def test_a_new_key_is_fetched_when_its_first_token_comes(clock: ManualClock) -> None:
    issuer = ScriptedIssuer()
    identity = await started(clock, issuer)
    first = await identity.authenticate(BY_FIRST)
    issuer.answer = BOTH_KEYS

    second = await identity.authenticate(BY_SECOND)

    assert second == first
    assert issuer.fetches == 2
    assert await identity.authenticate(BY_FIRST) == first


async def test_unknown_key_ids_make_one_fetch_in_30_s(clock: ManualClock) -> None:
    issuer = ScriptedIssuer()
    identity = await started(clock, issuer)
    details = {await refusal(identity, bearer(header={"kid": f"guess-{n}"})) for n in range(20)}
    at_once = issuer.fetches
    await clock.advance(29)
    details.add(await refusal(identity, bearer(header={"kid": "guess"})))
    after_29_s = issuer.fetches
    await clock.advance(1)

    details.add(await refusal(identity, bearer(header={"kid": "guess"})))

    assert details == {UNKNOWN_KEY}
    assert (at_once, after_29_s, issuer.fetches) == (2, 2, 3)


async def test_a_clock_that_was_set_back_does_not_end_fetching(clock: ManualClock) -> None:
    issuer = ScriptedIssuer()
    set_back_s = 0
    identity = await started_identity(clock, issuer, now_s=lambda: NOW_S - set_back_s)
    await refusal(identity, bearer({"exp": NOW_S + 60}, {"kid": "guess"}))

    set_back_s = 3600
    await refusal(identity, bearer(header={"kid": "guess"}))

    assert issuer.fetches == 3


async def test_many_callers_with_an_unknown_key_share_one_fetch(clock: ManualClock) -> None:
    issuer = ScriptedIssuer()
    identity = await started(clock, issuer)
    issuer.answer = BOTH_KEYS
    issuer.open.clear()
    callers = [asyncio.create_task(identity.authenticate(BY_SECOND)) for _ in range(50)]
    await clock.advance(1)
    waiting = sum(not caller.done() for caller in callers)
    known = await identity.authenticate(BY_FIRST)

    issuer.open.set()

    assert waiting == 50
    assert await asyncio.gather(*callers) == [known] * 50
    assert issuer.fetches == 2


async def test_a_caller_that_goes_away_does_not_take_the_fetch_along(clock: ManualClock) -> None:
    issuer = ScriptedIssuer()
    identity = await started(clock, issuer)
    issuer.answer = BOTH_KEYS
    issuer.open.clear()
    leaver, stayer = (asyncio.create_task(identity.authenticate(BY_SECOND)) for _ in range(2))
    await clock.advance(1)
    leaver.cancel()
    await clock.advance(1)

    issuer.open.set()

    assert (await stayer).username == "mary"
    assert leaver.cancelled()
    assert (issuer.fetches, issuer.cancelled) == (2, 0)


async def test_a_fetch_that_hangs_is_given_up_after_5_s(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    issuer = ScriptedIssuer()
    identity = await started(clock, issuer)
    issuer.open.clear()
    caller = asyncio.create_task(refusal(identity, BY_SECOND))
    await clock.advance(4)
    before = caller.done()

    await clock.advance(1)

    assert (before, caller.done()) == (False, True)
    assert await caller == UNKNOWN_KEY
    assert (issuer.fetches, issuer.cancelled) == (2, 1)
    assert warnings_of(caplog) == [("WARNING", "issuer keys not loaded", "TimeoutError")]


async def test_an_unknown_key_waits_for_the_refresh_under_way(clock: ManualClock) -> None:
    issuer = ScriptedIssuer()
    identity = await started(clock, issuer)
    issuer.answer = BOTH_KEYS
    issuer.open.clear()
    async with refreshing(identity):
        while issuer.fetches == 1:
            await clock.advance(1)
        caller = asyncio.create_task(identity.authenticate(BY_SECOND))
        await clock.advance(1)

        issuer.open.set()

        assert (await caller).username == "mary"
        assert issuer.fetches == 2


async def test_a_key_that_disappeared_verifies_nothing_after_the_next_refresh(clock: ManualClock) -> None:
    issuer = ScriptedIssuer(BOTH_KEYS)
    identity = await started(clock, issuer)
    await identity.authenticate(BY_FIRST)
    await identity.authenticate(BY_SECOND)
    issuer.answer = jwks(jwk(SECOND_KEY, "key-2"))

    async with refreshing(identity):
        await clock.advance(3600)

    assert identity.cached(BY_FIRST) is None
    assert await refusal(identity, BY_FIRST) == UNKNOWN_KEY
    assert (await identity.authenticate(BY_SECOND)).username == "mary"


async def test_a_key_replaced_under_its_id_verifies_nothing_any_more(clock: ManualClock) -> None:
    issuer = ScriptedIssuer()
    identity = await started(clock, issuer)
    await identity.authenticate(BY_FIRST)
    issuer.answer = jwks(jwk(SECOND_KEY, "key-1"))

    async with refreshing(identity):
        await clock.advance(3600)

    assert identity.cached(BY_FIRST) is None
    assert await refusal(identity, BY_FIRST) == BAD_SIGNATURE


async def test_a_refresh_that_changes_nothing_keeps_verified_tokens(clock: ManualClock) -> None:
    issuer = ScriptedIssuer(BOTH_KEYS)
    identity = await started(clock, issuer)
    principal = await identity.authenticate(BY_FIRST)
    issuer.answer = jwks(jwk(SECOND_KEY, "key-2"), jwk(x5t="AAAA"))

    async with refreshing(identity):
        await clock.advance(3600)

    assert issuer.fetches == 2
    assert identity.cached(BY_FIRST) is principal


async def test_the_fetch_under_way_ends_with_the_refreshing(clock: ManualClock) -> None:
    issuer = ScriptedIssuer()
    identity = await started(clock, issuer)
    issuer.open.clear()
    async with refreshing(identity):
        while issuer.fetches == 1:
            await clock.advance(1)

    assert (issuer.fetches, issuer.cancelled) == (2, 1)
    assert identity.ready
