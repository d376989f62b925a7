"""How the daemon is: to the service manager, to Prometheus, to the log."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from rcm_daemon.core.progress import Progress
from rcm_daemon.io.notify import Manager

if TYPE_CHECKING:
    from collections.abc import Callable

    from rcm_daemon.core.message import Latency
    from rcm_daemon.io.door import Door
    from rcm_daemon.io.metrics import Metrics
    from rcm_daemon.settings import Settings

PATIENCE_S = 1.0
"""What is said once only is waited for so long, should the manager not read."""
FEED_S = 0.5
"""The watchdog is fed at most this often."""
SHOW_S = 1.0
"""Status and metrics are renewed at most this often."""
START_STEP_S = 120
"""A start that goes on step by step takes no longer than this for one."""
N_TRIES = 2
WORKER_START_S = 60.0
"""A slice may time out twice, with a worker's start between, before it is quarantined."""

log = logging.getLogger("rcm_daemon")


class Vitals:
    """Feeds the watchdog while the loop turns, slices get done and the authenticator lives, and then only.

    Parameters
    ----------
    door
        Whose authenticator must live.
    """

    def __init__(self, settings: Settings, door: Door) -> None:
        self._door = door
        self._progress = Progress(N_TRIES * settings.slice_timeout_s + WORKER_START_S)
        self._manager = Manager()
        self._show_at_s = self._feed_at_s = 0.0
        self._status = self._fault = ""
        self._metrics: Metrics | None = None
        if settings.metrics_bind:
            from rcm_daemon.io.metrics import Metrics

            self._metrics = Metrics(settings.metrics_bind)

    @property
    def is_sound(self) -> bool:
        """Whether nothing is known to be wrong."""
        return not self._fault

    def starting(self) -> None:
        """Say that the start goes on and may take a while yet."""
        self._manager.tell(f"EXTEND_TIMEOUT_USEC={START_STEP_S * 1_000_000}", PATIENCE_S)

    def ready(self) -> None:
        """Say that slices are served from now on."""
        self._manager.tell("READY=1", PATIENCE_S)

    def reloading(self) -> None:
        """Say that the settings are being read again; `ready` must follow."""
        self._manager.tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1_000}", PATIENCE_S)

    def stopping(self) -> None:
        """Say that the slices in hand are the last."""
        self._manager.tell("STOPPING=1", PATIENCE_S)

    def beat(self, now_s: float, n_waiting: int, n_done: int, health: Callable[[], dict[str, Any]]) -> None:
        """Tell how things stand; called each time the loop turns."""
        stalled = self._progress.is_stalled(now_s, n_waiting, n_done)
        fault = "slices wait and none gets done" if stalled else ""
        if not self._door.is_alive:
            fault = "the authenticator is dead"
        if fault and fault != self._fault:
            log.error("watchdog not fed", extra={"reason": fault})
        self._fault = fault
        if not fault and now_s >= self._feed_at_s:
            self._feed_at_s = now_s + FEED_S
            self._manager.tell("WATCHDOG=1")
        if now_s >= self._show_at_s:
            self._show_at_s = now_s + SHOW_S
            self._show(health())

    def observe(self, latency: Latency) -> None:
        """Note how long a slice took."""
        if self._metrics is not None:
            self._metrics.observe(latency)

    def close(self) -> None:
        """Serve no more metrics, and say no more."""
        self._manager.close()
        if self._metrics is not None:
            self._metrics.close()

    def _show(self, health: dict[str, Any]) -> None:
        if self._metrics is not None:
            self._metrics.show(health)
        status = (
            f"{self._fault or health['state']}: {health['n_open_stacks']} open stacks, "
            f"{health['n_slices']} slices, {health['n_waiting']} waiting, "
            f"{health['n_rejected']} rejected, {health['n_lost']} lost"
        )
        if status != self._status:
            self._status = status
            self._manager.tell(f"STATUS={status}")
