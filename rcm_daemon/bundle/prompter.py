"""Waits for the requests of the daemon, and has the networks run for nothing meanwhile, to be quick then."""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING

from rcm_daemon.bundle.channel import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from rcm_daemon.core.rhythm import Rhythm

KEEP_WARM_EVERY_S = 0.05
KEPT_WARM_S = 10.0
"""A GPU that had nothing to do for 0.1 s is up to ten times slower at the next slice: so long after the last
one it runs a black slice so often."""
N_WHOLE_PASSES = 3
"""The last passes of a rehearsal do all that a slice needs, those before run the CNN alone."""


class Prompter:
    """Takes requests; before the next of a regular stream is expected, the last one is gone through again.

    Should the daemon write what comes next meanwhile, then what is gone through is a mixture of both.

    Parameters
    ----------
    channel
        Where requests come from.
    rhythm
        Of the requests.
    go_through
        Does what a request and the message that follows it ask for; nobody gets what comes of it.
    run_cnn
        Runs the CNN alone.
    keeps_warm
        Whether the CNN is to be run now and then even where requests have no rhythm.
    """

    def __init__(
        self,
        channel: socket.socket,
        rhythm: Rhythm,
        go_through: Callable[[bytes, Callable[[], bytes]], object],
        run_cnn: Callable[[], object],
        *,
        keeps_warm: bool,
    ) -> None:
        self._channel = channel
        self._rhythm = rhythm
        self._go_through, self._run_cnn = go_through, run_cnn
        self._keeps_warm = keeps_warm
        self._rests_at_s = time.monotonic() + KEPT_WARM_S
        self._request = self._followed_by = b""

    def next_request(self) -> bytes:
        """Wait for a request; empty when the channel closed.

        Raises
        ------
        DeviceError
            The CNN failed meanwhile.
        """
        while not select.select([self._channel], [], [], self._patience_s())[0]:
            begun_s = time.monotonic()
            if self._rhythm.wait_s(begun_s) == 0:
                self._rehearse()
                self._rhythm.rehearsed(begun_s, time.monotonic())
            elif self._keeps_warm:
                self._run_cnn()
        self._request = self._channel.recv(MAX_MESSAGE_BYTES)
        now_s = time.monotonic()
        self._rests_at_s = now_s + KEPT_WARM_S
        self._rhythm.arrived(now_s)
        return self._request

    def what_follows(self) -> bytes:
        """Wait for the message that follows the request in hand."""
        self._followed_by = self._channel.recv(MAX_MESSAGE_BYTES)
        return self._followed_by

    def _rehearse(self) -> None:
        if self._rhythm.n_left > N_WHOLE_PASSES:
            self._run_cnn()
        else:
            self._go_through(self._request, lambda: self._followed_by)

    def _patience_s(self) -> float | None:
        """How long to wait before anything is run for nothing; None = for good."""
        now_s = time.monotonic()
        wait_s = self._rhythm.wait_s(now_s)
        if not self._keeps_warm or now_s >= self._rests_at_s:
            return wait_s
        return KEEP_WARM_EVERY_S if wait_s is None else min(wait_s, KEEP_WARM_EVERY_S)
