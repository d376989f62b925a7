"""All of the daemon's sockets, locked where they must be, and what is ready on them."""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any

import zmq

from rcm_daemon.io.control import ControlSocket
from rcm_daemon.io.door import Door
from rcm_daemon.io.ingest import IngestSocket, Received
from rcm_daemon.io.line import Line
from rcm_daemon.io.results import ResultsSocket
from rcm_daemon.io.sockets import Context, bind_control, bind_ingest, bind_results, connect_slices, rebind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rcm_daemon.core.acknowledgement import Reply
    from rcm_daemon.io.curve import CurveServer
    from rcm_daemon.io.sockets import Socket
    from rcm_daemon.settings import Settings

log = logging.getLogger("rcm_daemon")

WATCH_S = 0.05
"""Connections are looked after this often, and whenever one changes."""


class Endpoints:
    """Binds results, control and acknowledged ingest; connects to slices later.

    Raises
    ------
    ConfigurationError
        A port in use, or keys that cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._context: Context = Context()
        self._polled: list[Any] = []
        self._poller = zmq.Poller()
        self._watch_at_s = 0.0
        self.slices: dict[Socket, bytes | None] = {}  # with the public key of the controller, if locked
        try:
            locked = any(map(settings.is_encrypted, settings.endpoints))
            self.door = Door(self._context, settings.keys_dir, settings.key if locked else None)
            self.results = ResultsSocket(self._bind_results(), self.door.allows)
            control = bind_control(self._context, settings.control_bind, self._lock(settings.control_bind))
            self.control = ControlSocket(control, self.door.allows, self.door.lets_operate)
            self.ingest: IngestSocket | None = None
            if settings.ingest_bind:
                socket = bind_ingest(self._context, settings.ingest_bind, self._lock(settings.ingest_bind))
                self.ingest = IngestSocket(socket, settings.ingest_credit)
        except BaseException:
            self.abort()
            raise

    def connect_slices(self) -> None:
        """Connect a socket a controller, and begin to watch all sockets for refused connections.

        Raises
        ------
        ConfigurationError
            Slices cannot be connected to.
        """
        for position, endpoint in enumerate(self._settings.slices_connect):
            curve = None
            if self._settings.is_encrypted(endpoint):
                curve = self.door.client(self._settings.controller_key(position))
            socket = connect_slices(self._context, endpoint, self._settings.slices_socket, curve)
            self.slices[socket] = curve.server if curve is not None else None
            self.door.watch(socket, "slices", Line(socket, endpoint))
        self.door.watch(self.results.socket, "results")
        self.door.watch(self.control.socket, "control")
        if self.ingest is not None:
            self.door.watch(self.ingest.socket, "ingest")

    def poll(self, others: Iterable[Any], patience_ms: int, *, wants_slices: bool) -> set[Any]:
        """Wait for something to do, but not for slices that are not wanted now."""
        polled = [self.results.socket, self.control.socket, *self.door.monitors, *others]
        if wants_slices:
            polled += [*self.slices, *([self.ingest.socket] if self.ingest is not None else [])]
        if polled != self._polled:
            self._polled, self._poller = polled, zmq.Poller()
            for socket in polled:
                self._poller.register(socket, zmq.POLLIN)
        return {socket for socket, _ in self._poller.poll(patience_ms)}

    def receive(self, ready: set[Any]) -> Iterator[Received]:
        """Read a message from each of the sockets that slices come by and that are ready."""
        for socket, key in self.slices.items():
            if socket in ready:
                with contextlib.suppress(zmq.Again):  # the connection has been given up since it was ready
                    yield Received(b"", key, socket.recv_multipart(zmq.DONTWAIT, copy=False))
        if self.ingest is not None and self.ingest.socket in ready:
            yield self.ingest.receive()

    def acknowledge(self, reply: Reply) -> None:
        """Answer whoever sent a message by acknowledged ingest; others get no answer."""
        if self.ingest is not None and reply.peer:
            self.ingest.answer(reply)

    def keep_watch(self, ready: set[Any]) -> None:
        """Account for refused connections, and send away subscribers whose key has been revoked."""
        now_s = time.monotonic()
        if now_s < self._watch_at_s and ready.isdisjoint(self.door.monitors):
            return
        self._watch_at_s = now_s + WATCH_S
        self.door.note_events(now_s)
        self.door.report_refusals(now_s)
        if self.results.serves_revoked:
            # libzmq cannot send a single one away: all go, the others come again.
            self.door.leave(self.results.socket)
            self.results.socket.close(linger=0)
            log.warning("results bound anew, the key of a subscriber was revoked")
            self.results.replace_socket(rebind(self._bind_results))
            self.door.watch(self.results.socket, "results")

    def close(self) -> None:
        """Send what is still to be sent, and close everything."""
        self.door.report_refusals(float("inf"))
        # Monitors close when nothing refers to them any more.
        self._polled, self._poller = [], zmq.Poller()
        self.door.close()
        for socket in self.slices:
            socket.close(linger=0)
        self.results.socket.close()
        self.control.socket.close()
        if self.ingest is not None:
            self.ingest.socket.close()
        self._context.term()

    def abort(self) -> None:
        """Close everything at once."""
        if hasattr(self, "door"):
            self.door.close()
        self._context.destroy(linger=0)

    def _lock(self, endpoint: str) -> CurveServer | None:
        return self.door.server if self._settings.is_encrypted(endpoint) else None

    def _bind_results(self) -> Socket:
        endpoint = self._settings.results_bind
        return bind_results(self._context, endpoint, self._lock(endpoint))
