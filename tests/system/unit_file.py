"""The systemd unit as a test reads it, and a service manager's socket."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
SYSTEMD = ROOT / "deploy/systemd"
UNIT = SYSTEMD / "rcm-daemon.service"


def directives() -> dict[str, list[str]]:
    """Values by key, in order, sections aside."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


class Manager:
    """Where a service manager listens (sd_notify)."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(60)
        self.path = path

    def states(self) -> Iterator[str]:
        """Yield what the service says, as it comes."""
        while True:
            yield self.socket.recv(4096).decode()

    def drain(self) -> None:
        """Forget what has been said up to now."""
        self.socket.setblocking(False)
        try:
            while self.socket.recv(4096):
                pass
        except BlockingIOError:
            self.socket.settimeout(60)

    def until(self, beginning: str) -> list[str]:
        """Return what was said up to the first that begins so."""
        said = []
        for state in self.states():
            said.append(state)
            if state.startswith(beginning):
                return said
        raise AssertionError(beginning)
