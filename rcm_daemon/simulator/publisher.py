"""The socket on which a simulated microscope publishes."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import zmq

from rcm_daemon.core.wire import encode
from rcm_daemon.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rcm_daemon.core.records import Message


POLL_MS = 100


class Publisher:
    """Binds an XPUB and sends messages to whoever listens.

    Parameters
    ----------
    context
        Of its socket.
    endpoint
        Where to bind.
    secure
        Locks the socket before it is bound.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        secure: Callable[[zmq.Socket[bytes]], None] | None = None,
    ) -> None:
        self._socket = context.socket(zmq.XPUB)
        self._socket.setsockopt(zmq.XPUB_NODROP, 1)  # a simulated microscope waits rather than loses
        self._socket.linger = 5_000
        if secure is not None:
            secure(self._socket)
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self._socket.close(linger=0)
            raise ConfigurationError([f"slices cannot be bound to {endpoint}: {error.strerror}"]) from error

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def wait_for_subscriber(self, timeout_s: float | None = None) -> bool:
        """Wait until somebody listens; False soon after `timeout_s` without."""
        give_up_s = time.monotonic() + (math.inf if timeout_s is None else timeout_s)
        # Never for long at a time: an interrupt that comes just before libzmq waits is seen after it.
        while not (found := self._socket.poll(POLL_MS, zmq.POLLIN)) and time.monotonic() < give_up_s:
            pass
        return bool(found)

    def send(self, message: Message) -> None:
        """Send one message, waiting where a subscriber's queue is full."""
        self._socket.send_multipart(encode(message))
