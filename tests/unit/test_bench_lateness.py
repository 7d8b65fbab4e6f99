"""What a late delta has waited for adds up, and each part of it has the right cause."""

import asyncio
import functools
import signal
from collections import Counter
from pathlib import Path

from bench.delays import COLLECTION, READ, STORE, Clocks, Recorder, Span, read_spans, whose
from bench.lateness import ASLEEP, BETWEEN, LOCKED, OTHERS, OWN, QUEUED, causes, section

MS = 1_000_000


def span(
    name: str,
    begin_ms: float,
    end_ms: float,
    *,
    used_ms: tuple[float, float] = (0, 0),
    queued_ms: tuple[float, float] = (0, 0),
    written_ms: float = 0,
) -> Span:
    """A span with what the thread had used and waited for at its edges."""
    edges = zip((begin_ms, end_ms), used_ms, queued_ms, strict=True)
    begin, end = (Clocks(*(int(value * MS) for value in edge)) for edge in edges)
    return Span(name, begin, end, int(written_ms * MS))


def test_a_late_delta_has_waited_for_what_ran_since_it_was_written() -> None:
    spans = [
        span("service.log", 10, 12, used_ms=(0, 2)),
        span(READ, 12.5, 13.5, used_ms=(2.5, 3.5), written_ms=13),
        span(READ, 13.5, 14.5, used_ms=(3.5, 4.5), written_ms=11),
    ]

    assert [+found for found in causes(spans, late_ms=1)] == [
        Counter({OWN: MS, OTHERS: MS, "service.log": MS, BETWEEN: MS // 2})
    ]


def test_time_off_the_processor_is_the_queue_then_the_store_then_sleep() -> None:
    spans = [
        span("service.log", 0, 1),
        span(STORE, 12, 14),
        span(READ, 20, 21, used_ms=(0, 0.5), queued_ms=(3, 3.5), written_ms=10),
    ]

    (found,) = causes(spans, late_ms=1)

    assert +found == Counter({OWN: MS // 2, QUEUED: 3 * MS + MS // 2, LOCKED: 2 * MS, ASLEEP: 5 * MS})


def test_a_collection_is_not_on_the_account_of_what_it_interrupts() -> None:
    spans = [
        span("service.log", 0, 1),
        span(COLLECTION, 11, 14),
        span(READ, 10, 15, used_ms=(0, 5), written_ms=10),
    ]

    (found,) = causes(spans, late_ms=1)

    assert +found == Counter({COLLECTION: 3 * MS, OWN: 2 * MS})


def test_the_section_says_how_many_were_late_and_why() -> None:
    late = [
        span("service.log", 0, 1),
        span(READ, 10, 14, used_ms=(0, 1), queued_ms=(0, 3), written_ms=10),
        span(READ, 14.01, 14.03, used_ms=(1, 1.02), queued_ms=(3, 3), written_ms=14),
    ]

    made = section({"copy": {"late_p50": 0.1, "late_p99": 0.7}}, late)

    assert "| copy, at the client | 0.10 | 0.70 |" in made
    assert "Of 2 deltas 1 more than 0.5 ms late and 1 more than 1 ms late." in made
    assert "takes 1000 us of CPU" in made
    assert "right behind another 20 us" in made
    assert f"| {QUEUED} | 75% | 100% | 75% | 100% |" in made


def test_a_recorder_writes_its_spans(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "spans")
    began = recorder.now()
    recorder.note("service.log", began, recorder.now(), 7)

    recorder.write(signal.SIGUSR2, None)

    (written,) = read_spans(tmp_path / "spans")
    assert (written.whose, written.begin, written.written_ns) == ("service.log", began, 7)
    assert written.end.at_ns >= began.at_ns


async def test_a_callback_is_charged_to_its_module_and_a_task_to_what_it_waits_in() -> None:
    async def waits() -> None:
        await asyncio.sleep(60)

    task = asyncio.create_task(waits())
    await asyncio.sleep(0)

    assert whose(functools.partial(section, {})) == "bench.lateness"
    assert whose(task.cancel) == __name__
    task.cancel()
