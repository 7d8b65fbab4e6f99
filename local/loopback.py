"""Network namespaces that have nothing but `lo`: whether one can be made, and what runs inside. Linux only.

`dynamodb` runs its two children in one::

    unshare --net -- python -m local.loopback PARENT FD PROGRAM ARGUMENTS...        see `enclosed`
    nsenter --target=PID --net -- ...                                               see `joined`

A new namespace's `lo` is down. This module, run as a program, brings it up, makes sure that nothing else is
up, says so with one byte to the file descriptor, and becomes the program, whose pid and signals are then its
own. PARENT is the pid of the process that must outlive it: when it is gone, the kernel kills the program.
Who is not root makes a user namespace around it and is root in there.

Sources: https://man7.org/linux/man-pages/man7/network_namespaces.7.html,
https://man7.org/linux/man-pages/man7/netdevice.7.html
"""

import ctypes
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

_PR_SET_PDEATHSIG: Final = 1  # https://man7.org/linux/man-pages/man2/PR_SET_PDEATHSIG.2const.html
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1
_IFREQ: Final = struct.Struct("16sh22x")


_AS_OWN_ROOT: Final = ("--user", "--map-root-user")


def namespace_options() -> tuple[str, ...] | None:
    """Return the options with which `unshare` makes a network namespace here; None if it can't."""
    for options in ((), _AS_OWN_ROOT):
        try:
            tried = subprocess.run(
                ["unshare", *options, "--net", "--", "true"],  # noqa: S607 - util-linux, wherever it is
                capture_output=True,
                check=False,
            )
        except OSError:  # there is no `unshare`: another system, or a very small one
            return None
        if tried.returncode == 0:
            return options
    return None


def enclosed(options: Sequence[str], told: int, program: Sequence[str]) -> list[str]:
    """Return the command that runs a program in a new namespace; `told` is inherited and gets one byte when
    all is as it must be, or is closed without one."""
    bound = [sys.executable, "-m", "local.loopback", str(os.getpid()), str(told), *program]
    return ["unshare", *options, "--net", "--", *bound]


def joined(options: Sequence[str], pid: int, program: Sequence[str]) -> list[str]:
    """Return the command that runs a program in the namespace in which process `pid` runs."""
    user = ("--user", "--preserve-credentials") if options else ()
    return ["nsenter", f"--target={pid}", *user, "--net", "--", *program]


def main() -> None:
    """Become the program, or end with status 1 and the reason."""
    parent, told, *command = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):
        sys.exit("loopback: the parent is gone already")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        others = [
            name for _, name in socket.if_nameindex() if name != "lo" and _flags(control, name) & _IFF_UP
        ]
        if others:
            sys.exit(f"loopback: {', '.join(others)} leads out of this network namespace")
        fcntl.ioctl(control, _SIOCSIFFLAGS, _IFREQ.pack(b"lo", _flags(control, "lo") | _IFF_UP))
    os.write(int(told), b"1")
    os.close(int(told))
    os.execvp(command[0], command)  # noqa: S606 - there is no shell on purpose


def _flags(control: socket.socket, interface: str) -> int:
    request = _IFREQ.pack(interface.encode(), 0)
    flags: int = _IFREQ.unpack(fcntl.ioctl(control, _SIOCGIFFLAGS, request))[1]
    return flags


if __name__ == "__main__":
    main()
