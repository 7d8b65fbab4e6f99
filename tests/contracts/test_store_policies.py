"""The store's port, over every implementation: who is denied, and whose limits are others."""

from service.stores import Denial, Policies, Store
from tests.contracts.store_cases import DAY_MS, HOUR_MS, NOW


async def test_without_decisions_nobody_is_denied_and_no_limit_is_another(store: Store) -> None:
    assert await store.policies(NOW) == Policies({}, {})


# ------------------------------------------------------------ denials


async def test_a_denial_holds_until_it_is_taken_back(store: Store) -> None:
    await store.deny("sub:user-1", NOW)
    await store.deny("origin_jti:sign-in-1", NOW + 1)
    denied = await store.policies(NOW + 365 * DAY_MS)

    were_denied = [await store.allow("sub:user-1"), await store.allow("sub:user-1")]

    assert denied == Policies({"sub:user-1": Denial(NOW), "origin_jti:sign-in-1": Denial(NOW + 1)})
    assert were_denied == [True, False]
    assert await store.policies(NOW) == Policies({"origin_jti:sign-in-1": Denial(NOW + 1)})


async def test_a_denial_with_an_end_holds_until_then(store: Store) -> None:
    await store.deny("sub:user-1", NOW, NOW + HOUR_MS)

    before, after = await store.policies(NOW + HOUR_MS - 1), await store.policies(NOW + HOUR_MS)

    assert before == Policies({"sub:user-1": Denial(NOW, NOW + HOUR_MS)})
    assert after == Policies()


async def test_of_several_denials_of_a_subject_the_last_one_stands(store: Store) -> None:
    await store.deny("sub:user-1", NOW, NOW + 1)
    await store.deny("sub:user-1", NOW + 5)
    await store.deny("sub:user-2", NOW)
    await store.deny("sub:user-2", NOW + 5, NOW + 9)

    assert await store.policies(NOW + 6) == Policies(
        {"sub:user-1": Denial(NOW + 5), "sub:user-2": Denial(NOW + 5, NOW + 9)}
    )


async def test_a_purge_keeps_the_denials_that_hold(store: Store) -> None:
    await store.deny("sub:user-1", NOW)
    await store.deny("sub:user-2", NOW, NOW + DAY_MS)
    await store.deny("sub:user-3", NOW, NOW + 1)

    await store.purge(NOW + HOUR_MS, 3600)

    assert (await store.policies(NOW)).denied.keys() >= {"sub:user-1", "sub:user-2"}
    assert (await store.policies(NOW + HOUR_MS)).denied.keys() == {"sub:user-1", "sub:user-2"}


async def test_a_subject_may_have_any_name_that_a_token_may_give_it(store: Store) -> None:
    names = [
        "sub:" + "x" * 128,
        "sub:Zoë O'Neil; DROP",
        "sub:" + "\N{OLD PERSIAN SIGN A}" * 128,
        "sub:a:b#c/d",
    ]
    for name in names:
        await store.deny(name, NOW)

    assert (await store.policies(NOW)).denied == dict.fromkeys(names, Denial(NOW))
    assert [await store.allow(name) for name in names] == [True] * len(names)


# ------------------------------------------------------------ limits


async def test_overrides_of_a_principal_are_added_to_those_that_it_has(store: Store) -> None:
    await store.set_limits("user-1", {"daily_tokens": 5, "monthly_tokens": 10**15})
    await store.set_limits("user-2", {"concurrent_invocations": 0})

    await store.set_limits("user-1", {"daily_tokens": 7, "invocation_tokens": 9})

    assert await store.policies(NOW) == Policies(
        limits={
            "user-1": {"daily_tokens": 7, "monthly_tokens": 10**15, "invocation_tokens": 9},
            "user-2": {"concurrent_invocations": 0},
        }
    )


async def test_cleared_overrides_are_gone_and_others_stay(store: Store) -> None:
    await store.set_limits("user-1", {"daily_tokens": 5, "monthly_tokens": 6})
    await store.set_limits("user-2", {"daily_tokens": 5})
    await store.set_limits("user-3", {})

    await store.set_limits("user-1", None)
    await store.set_limits("user-1", None)

    assert (await store.policies(NOW)).limits == {"user-2": {"daily_tokens": 5}}


async def test_denials_and_overrides_of_one_principal_do_not_touch_each_other(store: Store) -> None:
    await store.deny("sub:user-1", NOW)
    await store.set_limits("user-1", {"daily_tokens": 5})
    await store.set_limits("user-2", {"daily_tokens": 6})

    await store.allow("sub:user-1")
    await store.deny("sub:user-2", NOW)
    await store.set_limits("user-2", None)

    assert await store.policies(NOW) == Policies({"sub:user-2": Denial(NOW)}, {"user-1": {"daily_tokens": 5}})


async def test_dozens_of_decisions_are_one_snapshot(store: Store) -> None:
    for number in range(60):
        await store.deny(f"sub:user-{number}", NOW, NOW + number)
        await store.set_limits(f"user-{number}", {"daily_tokens": number})

    snapshot = await store.policies(NOW + 30)

    assert snapshot.denied == {f"sub:user-{number}": Denial(NOW, NOW + number) for number in range(31, 60)}
    assert snapshot.limits == {f"user-{number}": {"daily_tokens": number} for number in range(60)}
