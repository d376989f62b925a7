"""Waking the loop from a signal handler or another thread."""

from __future__ import annotations

import socket


class Wakeup:
    """Readable once `wake` was called, until `clear`."""

    def __init__(self) -> None:
        self._awake, self._wakeup = socket.socketpair()
        self._awake.setblocking(False)
        self._wakeup.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._awake.fileno()

    def wake(self) -> None:
        """Make it readable; never waits."""
        try:
            self._wakeup.send(b"\x00")
        except OSError:
            return  # a full pipe wakes as well; a closed one belongs to a daemon that has stopped

    def clear(self) -> None:
        """Make it unreadable."""
        try:
            while self._awake.recv(4096):
                pass
        except BlockingIOError:
            return

    def close(self) -> None:
        """Close both ends."""
        self._awake.close()
        self._wakeup.close()
