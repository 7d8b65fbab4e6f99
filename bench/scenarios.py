"""The tables of the bench: each scenario with its subjects, its loading and the columns that it shows.

`__main__` measures them through `measuring`; the loadings are in `loadings`, and README.md says what a figure
means and what bounds it. Scenarios that say the same `group` run on the same beds.
"""

from collections.abc import Mapping

from bench.loadings import (
    BACKLOG,
    BEYOND,
    BUSY,
    CANNED,
    CHAT,
    DYNAMODB,
    FIRST_BYTE,
    LITELLM,
    LONG,
    LOW_RATE,
    MANY,
    ONE_DELTA,
    SHAPE_OFFERS,
    SHORT,
    SILENT,
    STALLED,
    STORE,
    backlog,
    disconnect_storm,
    first_byte,
    idle,
    long_answer,
    many_streams,
    port_shape,
    requests,
    saturating,
    slow_readers,
    soak,
    store,
    store_calls,
    token,
    twice_as_long,
    window,
)
from bench.measuring import DIRECT, Scenario
from bench.peers import SUBJECTS
from bench.report import Column
from bench.subjects import (
    OURS,
    SHAPE_SUBJECTS,
    Start,
    start_headrace,
    start_headrace_in_memory,
    start_headrace_on_canned,
    start_headrace_on_chat,
    start_headrace_on_dynamodb,
)

HEADRACE = "headrace"
IN_MEMORY = "headrace, in memory"
SOAK = "soak"
TLS_STREAMS = 600
_IDLE_COLUMNS = (
    Column("streams", "streams", 0),
    Column("begun", "begun", 0),
    Column("KB a stream", "kb", 1, spread=True),
    Column("x headrace", "kb", 1, per=HEADRACE),
    Column("ms CPU a s, 1,000 streams", "ms_per_s", 2),
)
_USE_COLUMNS = (
    Column("deltas/s offered", "offered", 0),
    Column("served", "served", 0),
    Column("core used", "use", 2),
    Column("us CPU a delta", "us", 1, spread=True),
    Column("x copy", "us", 2, per="copy"),
)
_CLIENT_COLUMNS = (Column("client core", "client_use", 2), Column("upstream core", "upstream_use", 2))


_ON_CHAT = {CHAT: start_headrace_on_chat}


def _only(*names: str) -> Mapping[str, Start]:
    return {name: SUBJECTS[name] for name in names}


_ALL = (
    Scenario(
        name="first-byte",
        subjects={**SUBJECTS, IN_MEMORY: start_headrace_in_memory},
        columns=(
            Column("first byte p50 ms", "byte_p50", 2),
            Column("added p50 ms", "byte_p50", 2, minus=DIRECT),
            Column("p99 ms", "byte_p99", 2),
            Column("first delta p50 ms", "delta_p50", 2),
            Column("added p50 ms", "delta_p50", 2, minus=DIRECT),
            Column("p99 ms", "delta_p99", 2),
        ),
        plans=lambda _name, _effort: [FIRST_BYTE],
        figures=first_byte,
        alone=(DIRECT,),
        group="one by one",
        once=(LITELLM,),
    ),
    Scenario(
        name="delta-latency",
        subjects=SUBJECTS,
        columns=(
            Column("p50 ms", "late_p50", 2),
            Column("added p50 ms", "late_p50", 3, minus=DIRECT),
            Column("p99 ms", "late_p99", 2),
            Column("added p99 ms", "late_p99", 2, minus=DIRECT),
            Column("us CPU a delta", "us", 1, spread=True),
            Column("x copy", "us", 2, per="copy"),
        ),
        plans=lambda _name, effort: [LOW_RATE.plan(effort)],
        figures=lambda bed: window(bed, LOW_RATE),
        alone=(DIRECT,),
        group="one by one",
        once=(LITELLM,),
    ),
    Scenario(
        name="requests",
        subjects={**SUBJECTS, **_ON_CHAT},
        columns=(
            Column("invocations/s", "rate", 0),
            Column("core used", "use", 2),
            Column("ms CPU an invocation", "ms", 3, spread=True),
            Column("x copy", "ms", 1, per="copy"),
            *_CLIENT_COLUMNS,
        ),
        plans=lambda _name, _effort: [ONE_DELTA],
        figures=requests,
        alone=(DIRECT,),
        group="one by one",
        quick=(DIRECT, *SUBJECTS),
    ),
    Scenario(
        name="backlog",
        subjects=SUBJECTS,
        columns=(
            Column("deltas/s", "served", 0),
            Column("core used", "use", 2),
            Column("us CPU a delta", "us", 2, spread=True),
            Column("x copy", "us", 2, per="copy"),
        ),
        plans=lambda _name, _effort: [BACKLOG],
        figures=backlog,
        alone=(DIRECT,),
        group="one by one",
        once=(LITELLM,),
    ),
    Scenario(
        name="saturation",
        subjects={**SUBJECTS, **_ON_CHAT},
        columns=(*_USE_COLUMNS, *_CLIENT_COLUMNS),
        plans=lambda name, effort: [saturating(name).plan(effort)],
        figures=lambda bed: window(bed, saturating(bed.name)),
        alone=(DIRECT, BEYOND),
        group="one by one",
        once=(BEYOND,),
        quick=(DIRECT, BEYOND, *SUBJECTS),
    ),
    Scenario(
        name="tls",
        subjects={**OURS, **_ON_CHAT},
        columns=_USE_COLUMNS,
        plans=lambda name, effort: [saturating(name, TLS_STREAMS).plan(effort)],
        figures=lambda bed: window(bed, saturating(bed.name, TLS_STREAMS)),
        tls=True,
        once=("nginx", "obvious"),
        quick=("copy", HEADRACE),
    ),
    Scenario(
        name="idle",
        subjects=SUBJECTS,
        columns=_IDLE_COLUMNS,
        plans=lambda _name, _effort: [SILENT],
        figures=lambda bed: idle(bed, 2_000),
        once=tuple(name for name in SUBJECTS if name not in ("copy", HEADRACE)),
        quick=("copy", HEADRACE, "obvious", LITELLM),
    ),
    Scenario(
        name="idle-8000",
        subjects=_only("copy", HEADRACE),
        columns=_IDLE_COLUMNS,
        plans=lambda _name, _effort: [SILENT],
        figures=lambda bed: idle(bed, 8_000),
        once=("copy",),
        quick=(),
    ),
    Scenario(
        name="idle-tls",
        subjects=_only("copy", HEADRACE),
        columns=_IDLE_COLUMNS,
        plans=lambda _name, _effort: [SILENT],
        figures=lambda bed: idle(bed, 2_000),
        tls=True,
        once=("copy",),
        quick=(),
    ),
    Scenario(
        name="slow-readers",
        subjects=_only("copy", HEADRACE, "obvious"),
        columns=(
            Column("MB a stalled reader", "mb", 2, spread=True),
            Column("the others: p50 ms", "late_p50", 2),
            Column("p99 ms", "late_p99", 1),
            Column("core used", "use", 2),
        ),
        plans=lambda _name, effort: [LOW_RATE.plan(twice_as_long(effort)), STALLED],
        figures=slow_readers,
        once=("copy", "obvious"),
        quick=(),
    ),
    Scenario(
        name="disconnect-storm",
        subjects=_only("copy", HEADRACE, "obvious", "smg"),
        columns=(
            Column("hang up at once", "streams", 0),
            Column("another caller: first byte p50 ms", "asked_p50", 2),
            Column("longest ms", "asked_max", 0),
            Column("CPU s in 3 s", "cpu_s", 2),
            Column("KB left a stream", "kb", 1),
            Column("upstream calls left", "under_way", 0),
        ),
        plans=lambda _name, _effort: [SILENT, ONE_DELTA],
        figures=disconnect_storm,
        once=("copy", "obvious", "smg"),
        quick=(HEADRACE,),
    ),
    Scenario(
        name="long-answer",
        subjects=_only("copy", HEADRACE, "smg"),
        columns=(
            Column("us a delta, answer of 200,000", "us", 2, spread=True),
            Column("answers of 20,000", "short_us", 2),
            Column("ratio", "flat", 2, spread=True),
            Column("s", "s", 1),
            Column("MB more after it", "mb", 1),
        ),
        plans=lambda _name, _effort: [LONG, SHORT],
        figures=long_answer,
        group="flat",
        once=("copy", "smg"),
        quick=(HEADRACE,),
    ),
    Scenario(
        name="many-streams",
        subjects=_only("copy", HEADRACE),
        columns=(
            *(Column(f"us a delta, {n:,} silent streams beside", f"beside_{n}", 1) for n in MANY),
            Column("ratio", "flat", 2, spread=True),
        ),
        plans=lambda _name, effort: [BUSY.plan(effort), SILENT],
        figures=many_streams,
        group="flat",
        once=("copy",),
        quick=(),
    ),
    Scenario(
        name="store",
        subjects={
            HEADRACE: start_headrace,
            DYNAMODB: start_headrace_on_dynamodb,
            CANNED: start_headrace_on_canned,
        },
        columns=(
            Column("invocations/s", "rate", 0),
            Column("ms CPU an invocation", "ms", 3, spread=True),
            Column("ms the store alone", "decisions_ms", 3, spread=True),
            Column("at invocations/s", "decided", 0),
            Column("20,000 deltas/s offered: served", "served", 0),
            Column("us CPU a delta", "us", 1, spread=True),
            Column("of the event loop", "us_main", 1),
            Column("of other threads", "us_threads", 1),
            Column("us the store alone", "store_us", 1, spread=True),
            Column("its share", "store_share", 2, spread=True),
        ),
        plans=lambda _name, effort: [ONE_DELTA, STORE.plan(effort)],
        figures=lambda bed: (store_calls if bed.name == CANNED else store)(bed),
        once=(HEADRACE,),
        quick=(),
    ),
    Scenario(
        name="token",
        subjects={},
        columns=(
            Column("first sight us", "first_us", 1, spread=True),
            Column("verified us", "verified_us", 2),
        ),
        plans=lambda _name, _effort: [],
        figures=token,
        alone=(HEADRACE,),
    ),
    Scenario(
        name=SOAK,
        subjects=_only(HEADRACE),
        columns=(
            Column("invocations", "invocations", 0),
            Column("invocations/s", "rate", 0),
            Column("MB after a tenth", "start_mb", 1),
            Column("after half", "half_mb", 1),
            Column("at the end", "end_mb", 1),
            Column("highest", "peak_mb", 1),
            Column("bytes an invocation, second half", "bytes", 1),
        ),
        plans=lambda _name, _effort: [ONE_DELTA],
        figures=soak,
        once=(HEADRACE,),
        default=False,
    ),
    Scenario(
        name="port-shape",
        subjects=SHAPE_SUBJECTS,
        columns=(
            Column("us a delta, 40k/s", "us", 1, spread=True),
            Column("x copy", "us", 2, per="copy"),
            Column("core used", "use", 2),
            Column("40k/s in fours", "burst_us", 1, spread=True),
            Column("1k/s", "low_us", 1, spread=True),
            Column("x copy", "low_us", 2, per="copy"),
        ),
        plans=lambda _name, effort: [offer.plan(effort) for offer in SHAPE_OFFERS.values()],
        figures=port_shape,
        default=False,
    ),
)
SCENARIOS = {scenario.name: scenario for scenario in _ALL}
