"""The daemon's own share of a slice, done once more shortly before the next is expected (decision 21)."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from rcm_daemon.core.message import build_message
from rcm_daemon.core.rhythm import Rhythm
from rcm_daemon.core.wire import parse

if TYPE_CHECKING:
    from rcm_daemon.bundles import Bundles
    from rcm_daemon.core.stack import Acquisition
    from rcm_daemon.inference import Labelled

log = logging.getLogger("rcm_daemon")

POLL_S = 0.001
"""The daemon's sockets are waited for in whole milliseconds: a pass is rather made too early by one."""


class Rehearsal:
    """Reads the last slice's message again, estimates its stack and writes the result, all for nothing.

    Nothing is changed by it, and nobody gets what comes of it.

    Parameters
    ----------
    share
        Of the time between two slices, as of `Rhythm`; 0 = none.

    Attributes
    ----------
    n_passes
        Made since the start.
    """

    def __init__(self, bundles: Bundles, share: float) -> None:
        self._bundles = bundles
        self._rhythm = Rhythm(share)
        self._is_on = share > 0
        self._frames: list[Any] = []
        self._piece: tuple[list[Any], Labelled] | None = None
        self._given_up: Acquisition | None = None
        self.n_passes = 0

    def came(self, frames: list[Any], now_s: float) -> None:
        """Note the message of a slice that was accepted."""
        if self._is_on:
            self._frames = frames
            self._rhythm.arrived(now_s)

    def labelled(self, last: Labelled) -> None:
        """Note what has been estimated without fault."""
        if self._is_on and last.stack is not self._given_up:
            self._piece = self._frames, last

    def wait_s(self, now_s: float) -> float | None:
        """Return how long to wait before the next pass, 0 = it is due; None = there is none to be made."""
        if self._piece is not None and self._piece[1].stack.state != "open":
            self._piece = None
        wait_s = self._rhythm.wait_s(now_s) if self._piece is not None else None
        return max(0.0, wait_s - POLL_S) if wait_s is not None else None

    def make_pass(self) -> None:
        """Make a pass, if one is due; no fault of it is a fault of the daemon."""
        begun_s = time.monotonic()
        if self._piece is None or self.wait_s(begun_s) != 0:
            return
        try:
            self._go_through(*self._piece)
        except Exception as error:
            # Its text may quote an id.
            log.error(
                "a rehearsal failed (%s), there are none for the rest of its stack", type(error).__name__
            )
            self._given_up, self._piece = self._piece[1].stack, None
        self._rhythm.rehearsed(begun_s, time.monotonic())
        self.n_passes += 1

    def _go_through(self, frames: list[Any], last: Labelled) -> None:
        parse([frame.buffer for frame in frames])
        stack = last.stack
        partial = last.partial.with_slices()  # anew, for it keeps what it has once worked out
        estimation = self._bundles.estimation(stack.bundle_digest)
        estimation.estimate(partial, last.given, stack.share_seen(len(partial)), last.before)
        source = self._bundles.source(stack.bundle_digest)
        latency = last.new[-1].latency(time.monotonic_ns())
        build_message(stack, source, latency, seq=0, time_ns=0, n_lost=0).to_json()
