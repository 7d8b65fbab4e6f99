"""Runs a module as `python -m` would, in a process that ends when its parent is gone.

`process` starts every child of the local stack through it::

    python -m local.tether MODULE ARGUMENTS...

The child is the module's own process: its pid, its signals and its exit status are the module's, and the
module needs to know nothing. The parent holds the other end of the child's stdin and never writes. When
that end closes, because the parent closed it or died in whatever way, a thread asks the process to stop
(SIGTERM) and, `GRACE_S` later, kills it. A pipe works on every Unix, unlike PR_SET_PDEATHSIG, which is
needed for one case only: a child that is stopped (SIGSTOP) can't read, so on Linux the kernel lets it
continue when the parent dies.
"""

import ctypes
import os
import runpy
import signal
import sys
import threading
import time
from typing import Final

GRACE_S: Final = 5.0
_PR_SET_PDEATHSIG: Final = 1  # https://man7.org/linux/man-pages/man2/PR_SET_PDEATHSIG.2const.html


def main() -> None:
    """Run the module named by the first argument with the others as its own."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGCONT, 0, 0, 0)
    threading.Thread(target=_end_with_parent, name="tether", daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _end_with_parent() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
