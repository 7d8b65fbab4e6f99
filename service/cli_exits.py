"""The exit codes of the `headrace` command; the README lists them for its users."""

from enum import IntEnum


class Exit(IntEnum):
    """How a command ended, for the shell and for programs."""

    DONE = 0
    """The invocation completed, or what was asked for was printed or done."""
    FAILED = 1
    """The invocation failed; of `smoke`, something did not hold."""
    MISUSED = 2
    """A usage error; argparse exits with the same code."""
    REFUSED = 3
    """An HTTP error, or nothing answers."""
    GAVE_UP = 4
    """Nothing new came for too long, or it is not known whether a submission was taken."""
    CANCELLED = 5
    """The invocation was cancelled."""
    INTERRUPTED = 130
    """Ctrl-C: the job goes on."""
    NOBODY_READS = 141
    """Whoever read stdout has gone away."""
