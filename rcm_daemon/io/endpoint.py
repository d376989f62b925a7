"""What an endpoint is, and whether others than this machine can reach it."""

from __future__ import annotations

import ipaddress
import re


def check_endpoint(value: str) -> str:
    """Return an endpoint as it is.

    Raises
    ------
    ValueError
        It is none; the message is the rule.
    """
    scheme, found, address = value.partition("://")
    if not found or scheme not in ("tcp", "ipc") or not address or re.search(r"\s", value):
        raise ValueError("an endpoint reads tcp://HOST:PORT or ipc://PATH")
    if scheme == "tcp":
        host, colon, port = address.rpartition(":")
        if not (
            colon and host and (port == "*" or (port.isascii() and port.isdigit() and int(port) < 65536))
        ):
            raise ValueError("a tcp endpoint reads tcp://HOST:PORT with a port below 65536")
    return value


def is_loopback(endpoint: str) -> bool:
    """Whether only this machine can reach an endpoint."""
    scheme, _, address = endpoint.partition("://")
    host = address.rpartition(":")[0].removeprefix("[").removesuffix("]")
    if scheme == "ipc" or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
