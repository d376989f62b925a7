"""Words to systemd: READY, WATCHDOG, STATUS, STOPPING."""

from __future__ import annotations

import contextlib
import os
import socket


class Manager:
    """The service manager, if there is one (sd_notify(3)).

    Its socket is opened once: with all descriptors taken by a flood of connections the watchdog is still fed.
    """

    def __init__(self) -> None:
        address = os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address  # `@`: an abstract socket
        self._socket: socket.socket | None = None
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def tell(self, state: str, patience_s: float = 0.0) -> None:
        """Send one state; a manager that went away or does not read must not hold up the instrument."""
        if self._socket is not None:
            self._socket.settimeout(patience_s)
            with contextlib.suppress(OSError):
                self._socket.sendto(state.encode(), self._address)

    def close(self) -> None:
        """Say no more."""
        if self._socket is not None:
            self._socket.close()
