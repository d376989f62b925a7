"""Words to systemd: READY, WATCHDOG, STOPPING."""

from __future__ import annotations

import os
import socket


def notify(state: str) -> None:
    """Send one state to the service manager, if there is one (sd_notify(3)); `@` marks an abstract socket."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
        manager.settimeout(1.0)
        try:
            manager.sendto(state.encode(), address)
        except OSError:
            return  # a manager that went away must not stop the instrument
