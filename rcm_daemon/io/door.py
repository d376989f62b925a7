"""Who may come in: the daemon's own keys, the allow-list, and an account of everybody refused."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import zmq
from zmq.utils.monitor import recv_monitor_message

from rcm_daemon.core.admission import ANY_INSTRUMENT
from rcm_daemon.core.rejection import Rejection, Rule
from rcm_daemon.errors import ConfigurationError
from rcm_daemon.io.allow_list import AllowList, read_allowed
from rcm_daemon.io.authenticator import Authenticator
from rcm_daemon.io.curve import CurveClient, CurveServer
from rcm_daemon.io.keys import load_key_pair
from rcm_daemon.io.line import LINE_EVENTS

if TYPE_CHECKING:
    from pathlib import Path

    from rcm_daemon.io.allow_list import AllowedKey
    from rcm_daemon.io.line import Line

REPORT_S = 60.0
"""Each socket's failed connections are logged at most this often for each reason, whatever the flood."""
MAX_EVENTS_A_TURN = 1_000

REASONS = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "key_refused",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "no_or_wrong_key",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "handshake_broken_off",
}
"""What libzmq tells of a failed handshake: refused by the authenticator; not encrypted at all or not for this
server; broken off, timed out, or nobody there to ask. Where the daemon connects, the controller refuses."""

log = logging.getLogger("rcm_daemon")


@dataclass(frozen=True)
class _Watched:
    name: str
    monitor: zmq.Socket[bytes]
    line: Line | None


class Door:
    """Keys and refusals of one context.

    Parameters
    ----------
    context
        Of all sockets that are to be guarded.
    keys_dir
        Key pairs and allow-list.
    key
        Name of the daemon's own key pair; None = nothing is encrypted.

    Raises
    ------
    ConfigurationError
        The key pair or the allow-list cannot be used.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], keys_dir: Path, key: str | None) -> None:
        self._allowed = AllowList(keys_dir)
        self._own = load_key_pair(keys_dir, key) if key is not None else None
        self._monitors: dict[zmq.Socket[bytes], _Watched] = {}
        self.refused: Counter[tuple[str, str]] = Counter()
        self._unreported: Counter[tuple[str, str, str]] = Counter()  # by socket, controller, reason
        self._report_at_s: dict[tuple[str, str, str], float] = {}
        self._authenticator: Authenticator | None = None
        if self._own is not None:
            read_allowed(keys_dir)  # refuses to begin with a damaged list
            self._authenticator = Authenticator(context, keys_dir)

    @property
    def is_alive(self) -> bool:
        """Whether somebody answers for new connections, if anybody must."""
        return self._authenticator is None or self._authenticator.is_alive

    @property
    def server(self) -> CurveServer:
        """How the daemon's own sockets are locked."""
        assert self._own is not None  # noqa: S101  # asked only where a key was given
        return CurveServer(self._own)

    def client(self, controller: str) -> CurveClient:
        """How to connect to the controller whose key is allowed under this name.

        Raises
        ------
        ConfigurationError
            No such key is allowed.
        """
        allowed = self._allowed.named(controller)
        if allowed is None:
            detail = f"no key {controller} is allowed; allow it with: rcm-daemon keys allow {controller}"
            raise ConfigurationError([detail])
        assert self._own is not None  # noqa: S101  # asked only where a key was given
        return CurveClient(self._own, allowed.public_key.encode())

    @property
    def monitors(self) -> list[zmq.Socket[bytes]]:
        """What to poll; whenever one is readable, `note_events`."""
        return [watched.monitor for watched in self._monitors.values()]

    def watch(self, socket: zmq.Socket[bytes], name: str, line: Line | None = None) -> None:
        """Count the connections that `socket` refuses, under this name; its `line` is to come back."""
        events = sum(REASONS) | (LINE_EVENTS if line is not None else 0)
        self._monitors[socket] = _Watched(name, socket.get_monitor_socket(events), line)

    def leave(self, socket: zmq.Socket[bytes]) -> None:
        """Watch a socket no more; before it is closed."""
        self._monitors.pop(socket)
        socket.disable_monitor()  # closes the other end as well

    def note_events(self, now_s: float) -> None:
        """Count what has been refused since the last call, at most so much a turn; restore broken lines."""
        for watched in self._monitors.values():
            for _ in range(MAX_EVENTS_A_TURN):
                if not int(watched.monitor.get(zmq.EVENTS)) & zmq.POLLIN:  # costs far less than poll(0)
                    break
                event = zmq.Event(recv_monitor_message(watched.monitor)["event"])
                if event in REASONS:
                    controller = watched.line.endpoint if watched.line is not None else ""
                    self.refused[watched.name, REASONS[event]] += 1
                    self._unreported[watched.name, controller, REASONS[event]] += 1
                elif watched.line is not None:
                    watched.line.note(event, now_s)
            if watched.line is not None:
                watched.line.restore(now_s)

    def report_refusals(self, now_s: float) -> None:
        """Log what has been refused and not been reported, each kind when its time has come."""
        for kind in [k for k in self._unreported if now_s >= self._report_at_s.get(k, 0.0)]:
            self._report_at_s[kind] = now_s + REPORT_S
            name, controller, reason = kind
            fields = {"socket": name, "reason": reason, "n": self._unreported.pop(kind)}
            if controller:
                log.warning("no connection to a controller", extra=fields | {"endpoint": controller})
                continue
            if reason == "key_refused" and self._authenticator is not None:
                fields["address"], fields["key"] = self._authenticator.last_refused
            log.warning("connections refused", extra=fields)

    def allows(self, key: bytes | None) -> bool:
        """Whether the holder of a key may still be here; None is a socket that is not locked."""
        return key is None or self._allowed.find(key) is not None

    def lets_operate(self, key: bytes | None) -> bool:
        """Whether the holder of a key may change what is served."""
        allowed = self._allowed.find(key) if key is not None else None
        return key is None or (allowed is not None and allowed.operator)

    def instrument_of(self, key: bytes | None) -> str:
        """Return the instrument whose messages this key may send, `*` = any.

        Raises
        ------
        Rejection
            The key has been revoked since it connected, or it is no instrument's.
        """
        if key is None:
            return ANY_INSTRUMENT
        allowed: AllowedKey | None = self._allowed.find(key)
        if allowed is None:
            raise Rejection(Rule.KEY_REVOKED, "the key of this connection is no longer allowed")
        if not allowed.instrument:
            raise Rejection(Rule.WRONG_INSTRUMENT, f"key {allowed.name} may not send slices")
        return allowed.instrument

    def close(self) -> None:
        """Let nobody in any more."""
        for socket in list(self._monitors):
            self.leave(socket)
        if self._authenticator is not None:
            self._authenticator.close()
