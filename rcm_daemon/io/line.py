"""The connection to one controller, which must come back whatever the controller did.

libzmq connects again by itself after a connection was lost, but not after the other side broke the protocol
(a frame that is too long, a handshake that does not fit) or refused this daemon's key: it then gives the
endpoint up for good, and without a word.
"""

from __future__ import annotations

import contextlib
import logging

import zmq

LINE_EVENTS = (
    zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED | zmq.EVENT_CONNECT_DELAYED | zmq.EVENT_CONNECTED
)
PAUSE_S = 1.0
"""So long after the last sign of life an endpoint counts as given up; libzmq's own retries come sooner."""
REPORT_S = 60.0
"""Connecting anew is logged at most this often."""

log = logging.getLogger("rcm_daemon")


class Line:
    """A socket's one endpoint: takes in monitor events, and connects anew where libzmq has given up."""

    def __init__(self, socket: zmq.Socket[bytes], endpoint: str) -> None:
        self._socket = socket
        self.endpoint = endpoint
        self._lost_s: float | None = None
        self._n_anew = 0
        self._report_at_s = 0.0

    def note(self, event: zmq.Event, now_s: float) -> None:
        """Take in one of `LINE_EVENTS`."""
        self._lost_s = now_s if event == zmq.EVENT_DISCONNECTED else None

    def restore(self, now_s: float) -> None:
        """Connect anew if libzmq does not."""
        if self._lost_s is None or now_s - self._lost_s < PAUSE_S:
            return
        self._lost_s = now_s  # until it is connected again
        with contextlib.suppress(zmq.ZMQError):  # what was given up may be gone already
            self._socket.disconnect(self.endpoint)
        self._socket.connect(self.endpoint)
        self._n_anew += 1
        if now_s >= self._report_at_s:
            self._report_at_s = now_s + REPORT_S
            log.warning(
                "a controller broke the protocol or refuses this daemon's key, connected anew",
                extra={"endpoint": self.endpoint, "n": self._n_anew},
            )
            self._n_anew = 0
