"""What CPU a process has used, its threads and its children's, as Linux accounts for it.

`load` reads it at the edges of a window, about the processes whose ids it is given. Linux only.

Source: /proc/PID/task/TID/schedstat, first field: time on the CPU in ns,
https://docs.kernel.org/scheduler/sched-stats.html. A thread that has ended takes its time along; the
subjects' threads live as long as they do.
"""

from contextlib import suppress
from pathlib import Path


def cpu_ns(pid: int) -> int:
    """CPU time of a process and all that descend from it, in ns; 0 for one that has gone."""
    total = 0
    with suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):
                total += int((thread / "schedstat").read_text().split()[0])
                total += sum(cpu_ns(int(child)) for child in (thread / "children").read_text().split())
    return total
