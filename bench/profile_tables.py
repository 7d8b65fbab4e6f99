"""What `profile` has found, as the sections of PROFILE.md: pure.

Shares of samples times the whole of the kernel's accounting are microseconds; what takes less than a
hundredth of the whole (side by side: of the dearest) is one line.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bench.report import as_markdown

_SMALL = 0.01
_OTHERS = "other threads: "
_MODULE = "module, in the event loop's thread"


@dataclass(frozen=True)
class Profile:
    """What was found: the two wholes in us, samples by thread and layer, nanoseconds by module."""

    main_us: float
    threads_us: float
    layers: Mapping[tuple[bool, str], int]
    """(Is it the event loop's thread, the layer)."""
    modules: Mapping[str, int]

    def modules_us(self) -> dict[str, float]:
        """Divide the event loop's thread among modules."""
        return _shared(self.modules, self.main_us)

    def layers_us(self, *, main: bool) -> dict[str, float]:
        """Divide the event loop's thread, or the others, among layers."""
        found = {layer: count for (is_main, layer), count in self.layers.items() if is_main is main}
        return _shared(found, self.main_us if main else self.threads_us)


def _shared(parts: Mapping[str, int], whole_us: float) -> dict[str, float]:
    whole = sum(parts.values()) or 1
    return {name: part / whole * whole_us for name, part in parts.items()}


def section(title: str, profile: Profile) -> str:
    """The tables of one profile."""
    whole = (
        f"{profile.main_us:,.1f} us of CPU in the event loop's thread, {profile.threads_us:,.1f} in others."
    )
    modules = _with_share(profile.modules_us(), profile.main_us)
    parts = [f"## {title}", whole, as_markdown([[_MODULE, "share", "us"], *modules])]
    if profile.layers:
        layers = [*_with_share(profile.layers_us(main=True), profile.main_us)]
        layers += _with_share(profile.layers_us(main=False), profile.threads_us, _OTHERS)
        parts.append(as_markdown([["layer", "share of its thread's", "us"], *layers]))
    return "\n\n".join(parts)


def _with_share(parts_us: Mapping[str, float], whole_us: float, said: str = "") -> Iterator[list[str]]:
    for name, (us,) in _large_first([parts_us], whole_us):
        yield [said + name, f"{us / (whole_us or 1):.0%}", f"{us:,.2f}"]


def side_by_side(title: str, says: str, profiles: Mapping[str, Profile]) -> str:
    """The tables of profiles that are to be compared, one column each."""
    found = profiles.values()
    wholes = [
        ["*the whole*", *(f"{each.main_us:,.1f}" for each in found)],
        [f"*{_OTHERS}the whole*", *(f"{each.threads_us:,.1f}" for each in found)],
    ]
    modules = _columns([each.modules_us() for each in found], max(each.main_us for each in found))
    parts = [f"## {title}", says, as_markdown([[_MODULE, *profiles], wholes[0], *modules])]
    if all(each.layers for each in found):
        rows = [["layer", *profiles]]
        for is_main, whole, said in ((True, wholes[0], ""), (False, wholes[1], _OTHERS)):
            columns = [each.layers_us(main=is_main) for each in found]
            dearest_us = max(each.main_us if is_main else each.threads_us for each in found)
            rows += [whole, *_columns(columns, dearest_us, said)]
        parts.append(as_markdown(rows))
    return "\n\n".join(parts)


def _columns(columns: Sequence[Mapping[str, float]], whole_us: float, said: str = "") -> Iterator[list[str]]:
    for name, values in _large_first(columns, whole_us):
        yield [said + name, *(f"{us:,.2f}" for us in values)]


def _large_first(
    columns: Sequence[Mapping[str, float]], whole_us: float
) -> Iterator[tuple[str, list[float]]]:
    """The rows, the largest first; those that are small in all columns are added up in the last one."""
    names = dict.fromkeys(name for column in columns for name in column)
    rows = {name: [column.get(name, 0.0) for column in columns] for name in names}
    ordered = sorted(rows.items(), key=lambda row: max(row[1]), reverse=True)
    large = [row for row in ordered if max(row[1]) >= _SMALL * whole_us]
    yield from large
    small = ordered[len(large) :]
    if small:
        yield f"{len(small)} more", [sum(values) for values in zip(*(row[1] for row in small), strict=True)]
