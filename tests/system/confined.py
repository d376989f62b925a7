"""Runs a command under the unit's own system call filter and address families, as systemd would set them.

`python confined.py COMMAND...`; each forbidden call gets the error that the unit names.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import subprocess
import sys

import pyseccomp
from unit_file import directives

PR_SET_NO_NEW_PRIVS = 38
N_FAMILIES = 46


def calls_of(group: str) -> set[str]:
    """Names of the system calls in one of systemd's groups, such as `@system-service`."""
    done = subprocess.run(
        ["systemd-analyze", "syscall-filter", group], capture_output=True, text=True, check=True
    )
    found: set[str] = set()
    for line in done.stdout.splitlines()[1:]:
        word = line.strip()
        if word.startswith("@"):
            found |= calls_of(word)
        elif word and not word.startswith("#"):
            found.add(word)
    return found


def allowed_calls() -> set[str]:
    """What the unit's SystemCallFilter lines leave over; systemd always adds `@default` and exec."""
    found: set[str] = set()
    for line in directives()["SystemCallFilter"]:
        groups = line.removeprefix("~").split()
        for group in groups:
            calls = calls_of(group) if group.startswith("@") else {group}
            found = found - calls if line.startswith("~") else found | calls
    return found | calls_of("@default") | {"execve"}


def main() -> None:
    """Confine this process, then become the command."""
    denied = getattr(errno, directives()["SystemCallErrorNumber"][0])
    calls = pyseccomp.SyscallFilter(pyseccomp.ERRNO(denied))
    for name in sorted(allowed_calls()):
        try:
            calls.add_rule(pyseccomp.ALLOW, name)
        except OSError:  # a call of other machines
            continue
    kept = {getattr(socket, name) for name in directives()["RestrictAddressFamilies"][0].split()}
    families = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    for family in set(range(N_FAMILIES)) - kept:
        refused = pyseccomp.ERRNO(errno.EAFNOSUPPORT)
        families.add_rule(refused, "socket", pyseccomp.Arg(0, pyseccomp.EQ, family))
    ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    families.load()
    calls.load()
    os.execv(sys.argv[1], sys.argv[1:])  # noqa: S606


if __name__ == "__main__":
    main()
