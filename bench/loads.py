"""What the load client is told and what it says: `Load` and `Result`, both of which cross a pipe as JSON.

`loadings` makes loads, `load` carries them out in a process of its own.
"""

import json
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Asking:
    """What to send, in turn, and what a right answer is."""

    requests: list[str]
    delta_mark: str
    end_mark: str
    deltas: int


@dataclass(frozen=True)
class Load:
    """How to load a subject; `times` is how many answers to fetch, 0 in the closed way: for window_s."""

    port: int
    asking: Asking
    way: str = "window"
    streams: int = 1
    times: int = 0
    ramp_s: float = 1.0
    begin_s: float = 0.0
    """How long streams may take to begin after the ramp; once all have, the rest is not waited for."""
    settle_s: float = 1.0
    window_s: float = 5.0
    limit_s: float = 60.0
    stamped: bool = False
    watched: dict[str, int] = field(default_factory=dict)
    stalled: int = 0
    """How many streams more are opened that stop reading at their first delta; they ask `beside`."""
    beside: Asking | None = None
    """What stalled streams ask, and the one caller of a hang-up."""

    @classmethod
    def read(cls, text: str) -> "Load":
        """Make a load of its JSON."""
        fields = json.loads(text)
        for name in ("asking", "beside"):
            fields[name] = Asking(**fields[name]) if fields[name] else None
        return cls(**fields)


@dataclass
class Result:
    """What was seen. Times are from the request to the byte, less what the upstream held the answer back."""

    first_byte_ms: list[float] = field(default_factory=list)
    first_delta_ms: list[float] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)
    deltas: int = 0
    answers: int = 0
    window_s: float = 0.0
    cpu_s: dict[str, float] = field(default_factory=dict)
    """Of the window, by process; `NAME main` is that of its first thread alone."""
    rss_bytes: dict[str, list[int]] = field(default_factory=dict)
    """By process: before anything was opened, at the window's edges, and while answers were counted."""
    begun: int = 0
    """Streams whose response had begun when the window did."""
    unfinished: int = 0
    """Streams that were open when a window ended."""
    errors: dict[str, int] = field(default_factory=dict)
