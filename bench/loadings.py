"""What each scenario does on its bed: a loading, and the figures taken from it.

`scenarios` names these functions and says how their figures are shown; README.md says what each figure means.
A function asks only for plans that its scenario has listed, so that subjects with a catalog know them.
"""

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.loads import Result
from bench.measuring import Bed, Effort, Figures
from bench.processes import SubjectFailed
from bench.script import Plan

BEYOND = "direct, 3x the rate"
LITELLM = "litellm"
DYNAMODB = "headrace, DynamoDB"
CANNED = "headrace, DynamoDB at once"
CHAT = "headrace, chat/completions"

FIRST_BYTE = Plan(first_ms=20, deltas=2, interval_us=1000)
BACKLOG = Plan(first_ms=0, deltas=2_000, interval_us=1000, burst=2_000)
ONE_DELTA = Plan(first_ms=0, deltas=1, interval_us=1000)
SILENT = Plan(first_ms=20, deltas=2, interval_us=360_000_000)
LONG = Plan(first_ms=0, deltas=200_000, interval_us=1000, burst=200)
SHORT = Plan(first_ms=0, deltas=20_000, interval_us=1000, burst=200)
STALLED = Plan(first_ms=20, deltas=200_000, interval_us=20_000, burst=80)

_PACE_US = 20_000
_SPARE_S = 1.0
_SETTLE_S = 1.0
_BEGIN_S = 40.0
_ENDED_S = 60.0
_STALLED_READERS = 5
_HANG_UPS = 1_000
_FEWER = {"litellm": 100, "portkey": 200, "obvious": 400}
"""Subjects that saturate far below 40,000 deltas/s: more streams would only wait in their buffers."""
_FEWER_SILENT = {LITELLM: 400}
"""Its connector has 500 connections to a host, and a silent stream holds one."""


@dataclass(frozen=True)
class Offer:
    """What a window offers: streams opened over ramp_s, the pace of each, how many deltas come at a time."""

    streams: int
    interval_us: int
    burst: int = 1
    ramp_s: float | None = None
    begin_s: float = 0.0
    stamped: bool = False

    def opening_s(self, effort: Effort) -> float:
        return effort.ramp_s if self.ramp_s is None else self.ramp_s

    def plan(self, effort: Effort) -> Plan:
        """A stream lasts from the first moment of the ramp to a second after the window."""
        open_s = self.opening_s(effort) + self.begin_s + _SETTLE_S + effort.window_s + _SPARE_S
        writes = max(2, int(open_s * 1e6 / self.interval_us))
        return Plan(20, writes * self.burst, self.interval_us, self.burst, self.stamped)


LOW_RATE = Offer(50, 50_000, ramp_s=1.0, stamped=True)
STORE = Offer(1_000, 50_000, ramp_s=20.0, begin_s=10.0)  # the emulator admits about a hundred a second
SHAPE_OFFERS = {
    "": Offer(800, _PACE_US, ramp_s=2.0),
    "burst_": Offer(800, 4 * _PACE_US, 4, ramp_s=2.0),
    "low_": Offer(50, 50_000, ramp_s=2.0),
}
BUSY = Offer(200, _PACE_US, ramp_s=1.0, begin_s=20.0)
MANY = (0, 4_000)
"""Silent streams that are open beside the busy ones."""


def saturating(name: str, streams: int = 800) -> Offer:
    """40,000 deltas/s with 800 streams; for subjects that can't, what they are offered."""
    pace_us = _PACE_US // 3 if name == BEYOND else _PACE_US
    return Offer(min(streams, _FEWER.get(name, streams)), pace_us)


def window(bed: Bed, offer: Offer, **more: Any) -> Figures:
    """Offer deltas and look at a window of it.

    Raises:
        SubjectFailed: A stream ended wrongly, or nothing arrived.
    """
    ramp_s = offer.opening_s(bed.effort)
    result = bed.load(
        offer.plan(bed.effort),
        streams=offer.streams,
        ramp_s=ramp_s,
        begin_s=offer.begin_s,
        settle_s=_SETTLE_S,
        window_s=bed.effort.window_s,
        limit_s=120.0,
        stamped=offer.stamped,
        **more,
    )
    figures = _use(bed, result) | {"offered": offer.streams * offer.burst / offer.interval_us * 1e6}
    if offer.stamped:
        if len(result.late_ms) < 2:
            raise SubjectFailed("no stamped delta arrived")
        figures |= {
            "late_p50": statistics.median(result.late_ms),
            "late_p99": percentile(result.late_ms, 99),
        }
    if offer.begin_s or more:
        figures["mb"] = _growth_bytes(result, 1, 2) / 2**20
    return figures


def _use(bed: Bed, result: Result) -> Figures:
    if not result.deltas:
        raise SubjectFailed("no delta arrived in the window")
    figures: Figures = {
        "served": result.deltas / result.window_s,
        "client_use": result.cpu_s["client"] / result.window_s,
        "upstream_use": result.cpu_s["upstream"] / result.window_s,
    }
    if not bed.alone:
        used_s, main_s = result.cpu_s["subject"], result.cpu_s["subject main"]
        figures |= {
            "use": used_s / result.window_s,
            "us": used_s / result.deltas * 1e6,
            "us_main": main_s / result.deltas * 1e6,
            "us_threads": (used_s - main_s) / result.deltas * 1e6,
        }
    return figures


def first_byte(bed: Bed) -> Figures:
    result = bed.load(FIRST_BYTE, way="sequential", times=bed.effort.first_bytes, limit_s=120.0)
    return {
        "byte_p50": statistics.median(result.first_byte_ms),
        "byte_p99": percentile(result.first_byte_ms, 99),
        "delta_p50": statistics.median(result.first_delta_ms),
        "delta_p99": percentile(result.first_delta_ms, 99),
    }


def backlog(bed: Bed) -> Figures:
    """Answers whose deltas are all there at once, one after another on four connections."""
    result = bed.load(BACKLOG, way="closed", streams=4, settle_s=0.5, window_s=bed.effort.window_s)
    return _use(bed, result)


def requests(bed: Bed) -> Figures:
    """Answers of one delta, one after another on 32 connections."""
    result = bed.load(ONE_DELTA, way="closed", streams=32, settle_s=1.0, window_s=bed.effort.window_s)
    if not result.answers:
        raise SubjectFailed("no answer in the window")
    figures = {
        "rate": result.answers / result.window_s,
        "client_use": result.cpu_s["client"] / result.window_s,
        "upstream_use": result.cpu_s["upstream"] / result.window_s,
    }
    if not bed.alone:
        figures["use"] = result.cpu_s["subject"] / result.window_s
        figures["ms"] = result.cpu_s["subject"] / result.answers * 1e3
        figures["ms_main"] = result.cpu_s["subject main"] / result.answers * 1e3
    return figures


def idle(bed: Bed, streams: int) -> Figures:
    """Streams whose upstream says nothing after its first delta: what one holds, and what heartbeats cost."""
    streams = min(streams, _FEWER_SILENT.get(bed.name, streams))
    found = silent(bed, streams)
    return {
        "streams": streams,
        "begun": found["begun"],
        "kb": found["mb"] * 1024 / streams,
        "ms_per_s": found["ms"] / (streams / 1_000),
    }


def silent(bed: Bed, streams: int) -> Figures:
    """A second with so many silent streams, or with none."""
    result = bed.load(
        SILENT,
        streams=streams,
        ramp_s=streams / 1_000,
        begin_s=_BEGIN_S,
        settle_s=_SETTLE_S,
        window_s=bed.effort.idle_s,
        limit_s=180.0,
    )
    return {
        "begun": result.begun,
        "mb": _growth_bytes(result, 0, 1) / 2**20,
        "ms": result.cpu_s["subject"] / result.window_s * 1e3,
        "ms_main": result.cpu_s["subject main"] / result.window_s * 1e3,
    }


def slow_readers(bed: Bed) -> Figures:
    """Readers that stop reading, beside fifty that do not; long enough to fill what the kernel holds."""
    longer = replace(bed, effort=twice_as_long(bed.effort))
    figures = window(longer, LOW_RATE, stalled=_STALLED_READERS, beside=STALLED)
    return figures | {"mb": figures["mb"] / _STALLED_READERS}


def twice_as_long(effort: Effort) -> Effort:
    return replace(effort, window_s=2 * effort.window_s)


def disconnect_storm(bed: Bed) -> Figures:
    """A thousand callers hang up at once, while one more asks."""
    streams = min(_HANG_UPS, _FEWER_SILENT.get(bed.name, _HANG_UPS))
    result = bed.load(
        SILENT,
        beside=ONE_DELTA,
        way="hang-up",
        streams=streams,
        ramp_s=streams / 500,
        begin_s=10.0,
        window_s=3.0,
        limit_s=90.0,
    )
    if not result.first_byte_ms:
        raise SubjectFailed("the caller beside got no answer")
    return {
        "streams": streams,
        "asked_p50": statistics.median(result.first_byte_ms),
        "asked_max": max(result.first_byte_ms),
        "cpu_s": result.cpu_s["subject"],
        "kb": _growth_bytes(result, 0, 2) / streams / 1024,
        "under_way": bed.upstream.under_way,
    }


def long_answer(bed: Bed) -> Figures:
    """One answer of 200,000 deltas, and as many in answers of 20,000; both as fast as they go."""
    loads = {"": (LONG, 1), "short_": (SHORT, 10)}
    figures: Figures = {}
    for prefix, (plan, times) in loads.items():
        result = bed.load(plan, way="closed", times=times, limit_s=180.0)
        figures |= {
            f"{prefix}us": result.cpu_s["subject"] / result.deltas * 1e6,
            f"{prefix}s": result.window_s,
            f"{prefix}mb": _growth_bytes(result, 0, -1) / 2**20,
        }
    return figures | {"flat": figures["us"] / figures["short_us"]}


def many_streams(bed: Bed) -> Figures:
    """What a delta costs while more and more other streams are open.

    A job outlives its readers: what the window before it has begun has ended when a window begins.
    """
    figures: Figures = {}
    for streams in MANY:
        until_s = time.monotonic() + _ENDED_S
        while bed.upstream.under_way:
            if time.monotonic() > until_s:
                raise SubjectFailed("what was asked before does not end")
            time.sleep(_SPARE_S)
        figures[f"beside_{streams}"] = window(bed, BUSY, stalled=streams, beside=SILENT)["us"]
    return figures | {"flat": figures[f"beside_{MANY[-1]}"] / figures["beside_0"]}


def store(bed: Bed) -> Figures:
    """What a store costs: the store alone, invocations of one delta, then 1,000 streams of 20 deltas/s."""
    figures = store_calls(bed) | _alone(bed, "bench.appends") | window(bed, STORE)
    return figures | {"store_share": figures["store_us"] / figures["us"]}


def store_calls(bed: Bed) -> Figures:
    """What a store costs an invocation of one delta: its decisions alone, and the whole service."""
    asked = requests(bed)
    return _alone(bed, "bench.decisions") | {name: asked[name] for name in ("rate", "ms", "ms_main")}


def _alone(bed: Bed, module: str) -> Figures:
    """The figures of a module that does one thing with the subject's store, on its core and beside it."""
    running = bed.running
    figures: Figures = json.loads(bed.processes.said(module, running.store, environ=running.environ))
    return figures


def soak(bed: Bed) -> Figures:
    """Many invocations, and what stays of those of the second half in memory."""
    times = bed.effort.invocations
    limit_s = 60.0 + times / 50
    result = bed.load(ONE_DELTA, way="closed", streams=32, times=times, limit_s=limit_s)
    tenths = result.rss_bytes["subject"][1:]
    half = len(tenths) // 2
    return {
        "invocations": times,
        "start_mb": tenths[0] / 2**20,
        "half_mb": tenths[half - 1] / 2**20,
        "end_mb": tenths[-1] / 2**20,
        "peak_mb": max(tenths) / 2**20,
        "bytes": (tenths[-1] - tenths[half - 1]) / (times * (1 - half / len(tenths))),
        "rate": result.answers / result.window_s,
    }


def port_shape(bed: Bed) -> Figures:
    figures: Figures = {}
    for prefix, offer in SHAPE_OFFERS.items():
        figures |= {prefix + figure: value for figure, value in window(bed, offer).items()}
    return figures


def token(bed: Bed) -> Figures:
    """What identity costs, in a process of its own without a server."""
    figures: Figures = json.loads(bed.processes.said("bench.tokens"))
    return figures


def percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


def _growth_bytes(result: Result, first: int, last: int) -> int:
    looked = result.rss_bytes["subject"]
    return looked[last] - looked[first]
