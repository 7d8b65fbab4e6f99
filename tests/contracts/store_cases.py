"""What tests of the store's port are made of: values with defaults, so a test names only what it is about."""

from typing import Final

from service.config import Limits
from service.events import Block, EventId
from service.invocations import Attempt, Invocation, State, Usage
from service.stores import Ending, EventBlock, Hold, NewInvocation, Pause, Settlement, Store, Turn

NOW: Final = 1_795_279_200_000
"""2026-11-21T16:40:00Z: where a 10-minute bucket begins."""
MINUTE_MS: Final = 60_000
HOUR_MS: Final = 60 * MINUTE_MS
DAY_MS: Final = 24 * HOUR_MS

LIMITS: Final = Limits(
    daily_tokens=1_000, monthly_tokens=5_000, concurrent_invocations=3, invocation_tokens=900
)
ROOMY: Final = Limits(10**12, 10**12, 10**6, 10**12)

COMPLETED: Final = b'{"invocationCompleted":{"stopReason":"end_turn"}}'
FAILED: Final = b'{"invocationFailed":{"problem":{}}}'
PAUSED: Final = b'{"invocationPaused":{"problem":{}}}'


def new(
    number: int = 1,
    *,
    tokens: int = 100,
    sub: str = "user-1",
    owner: str = "owner-1",
    runtime: str = "writer",
) -> NewInvocation:
    return NewInvocation(
        invocation_id=f"inv_{number}",
        runtime_id=runtime,
        sub=sub,
        session_id="session-1",
        input=b'{"prompt":"hi"}',
        first_reservation_tokens=tokens,
        owner=owner,
        deadline_at_ms=NOW + HOUR_MS,
        reservation_expires_at_ms=NOW + 40 * DAY_MS,
    )


def running(number: int = 1, *, sub: str = "user-1", at_ms: int = NOW) -> Invocation:
    """Return the record as `create_invocation(new(number))` leaves it."""
    return Invocation(
        invocation_id=f"inv_{number}",
        runtime_id="writer",
        sub=sub,
        session_id="session-1",
        state=State.RUNNING,
        attempts=(Attempt(1, at_ms),),
        created_at_ms=at_ms,
        updated_at_ms=at_ms,
        deadline_at_ms=NOW + HOUR_MS,
    )


def hold(
    number: int = 1,
    turn: int = 2,
    tokens: int = 100,
    *,
    attempt: int = 1,
    sub: str = "user-1",
    expires_at_ms: int = NOW + 40 * DAY_MS,
) -> Hold:
    return Hold(f"inv_{number}", attempt, turn, sub, tokens, expires_at_ms)


def used(tokens: int) -> Usage:
    """Return a usage that counts `tokens`, of all kinds that count; cache reads don't."""
    return Usage(tokens - tokens // 2, tokens // 2 - tokens // 4, 7, tokens // 4)


def settlement(
    number: int = 1,
    turn: int = 1,
    usage: Usage = Usage(30, 20, 5, 10),
    *,
    attempt: int = 1,
    sub: str = "user-1",
    charged: bool = True,
    messages: bytes | None = None,
    boundary: EventId | None = None,
) -> Settlement:
    return Settlement(
        f"inv_{number}", attempt, turn, sub, "writer", "model-1", usage, charged, messages, boundary
    )


def block(first: int, last: int, *, attempt: int = 1) -> Block:
    """Return a block of deltas that say which event they are."""
    return Block(attempt, first, tuple(delta(seq, attempt=attempt) for seq in range(first, last + 1)))


def delta(seq: int, *, attempt: int = 1) -> bytes:
    return b'{"contentBlockDelta":{"delta":{"text":"%d.%d"}}}' % (attempt, seq)


def entry(first: int, last: int, number: int = 1, *, attempt: int = 1) -> EventBlock:
    return EventBlock(f"inv_{number}", block(first, last, attempt=attempt))


def ending(
    number: int = 1,
    seq: int = 1,
    *settlements: Settlement,
    attempt: int = 1,
    state: State = State.COMPLETED,
    terminal: bytes = COMPLETED,
) -> Ending:
    """Return an ending whose only event, the terminal one, has this `seq`."""
    return Ending(f"inv_{number}", attempt, state, Block(attempt, seq, (terminal,)), settlements)


def pausing(
    number: int = 1,
    seq: int = 1,
    *,
    attempt: int = 1,
    turn: int = 2,
    tokens: int = 200,
    resumes_at_ms: int = NOW + HOUR_MS,
) -> Pause:
    """Return a pause whose only event has this `seq`."""
    return Pause(f"inv_{number}", attempt, Block(attempt, seq, (PAUSED,)), turn, tokens, resumes_at_ms)


def turn(number: int, messages: bytes, attempt: int, seq: int) -> Turn:
    return Turn(number, messages, EventId(attempt, seq))


async def charge(store: Store, number: int, tokens: int, now_ms: int, *, sub: str = "user-1") -> None:
    """Run a whole invocation that uses `tokens`."""
    await store.create_invocation(new(number, tokens=tokens, sub=sub), ROOMY, now_ms)
    await store.finish(ending(number, 1, settlement(number, 1, used(tokens), sub=sub)), now_ms)


async def after_finish(store: Store, end: Ending, now_ms: int) -> Invocation:
    """End an invocation, and return its record."""
    await store.finish(end, now_ms)
    return await _record(store, end.invocation_id)


async def after_pause(store: Store, wanted: Pause, now_ms: int) -> Invocation:
    """Let an invocation wait, and return its record."""
    await store.pause(wanted, now_ms)
    return await _record(store, wanted.invocation_id)


async def _record(store: Store, invocation_id: str) -> Invocation:
    record = await store.load_invocation(invocation_id)
    assert record is not None
    return record
