"""What a process and its children use, as Linux accounts for it: CPU time and memory.

`load` reads it at the edges of a window, about the processes whose ids it is given. Linux only.

Sources: /proc/PID/task/TID/schedstat, first field: time on the CPU in ns,
https://docs.kernel.org/scheduler/sched-stats.html; VmRSS of /proc/PID/status,
https://docs.kernel.org/filesystems/proc.html. A thread that has ended takes its time along; the subjects'
threads live as long as they do.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_RSS = re.compile(r"^VmRSS:\s*(\d+) kB", re.MULTILINE)


def cpu_ns(pid: int) -> int:
    """CPU time of a process and all that descend from it, in ns; 0 for one that has gone."""
    total = 0
    with suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            total += _thread_ns(thread)
    return total + sum(cpu_ns(child) for child in _children(pid))


def main_thread_ns(pid: int) -> int:
    """CPU time of a process's first thread alone, the one that runs its event loop; 0 if it has gone."""
    return _thread_ns(Path(f"/proc/{pid}/task/{pid}"))


def rss_bytes(pid: int) -> int:
    """Resident memory of a process and all that descend from it; pages that they share count for each."""
    total = 0
    with suppress(FileNotFoundError, ProcessLookupError):
        found = _RSS.search(Path(f"/proc/{pid}/status").read_text())
        total = int(found[1]) * 1024 if found else 0
    return total + sum(rss_bytes(child) for child in _children(pid))


def _thread_ns(thread: Path) -> int:
    with suppress(FileNotFoundError, ProcessLookupError):
        return int((thread / "schedstat").read_text().split()[0])
    return 0


def _children(pid: int) -> Iterator[int]:
    with suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):
                yield from map(int, (thread / "children").read_text().split())
