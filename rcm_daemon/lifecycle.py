"""What the operating system asks of the daemon: stop, or read the settings again."""

from __future__ import annotations

import logging
import signal
from typing import TYPE_CHECKING

from rcm_daemon.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rcm_daemon.io.wakeup import Wakeup
    from rcm_daemon.settings import Settings

log = logging.getLogger("rcm_daemon")

AT_ONCE = frozenset(
    "idle_timeout_s drain_timeout_s max_instruments max_slices_waiting n_ended_kept journal_keep_days "
    "journal_max_mb log_level".split()
)
"""Settings that SIGHUP changes in the running daemon; the others wait for its next start."""


class Lifecycle:
    """Notes signals and wakes the loop, which acts on them.

    Attributes
    ----------
    draining
        Whether SIGTERM or SIGINT has come.
    hung_up
        Whether SIGHUP has come since `read_again`.
    fault
        What was wrong with the settings when they were last read, empty if nothing.
    """

    def __init__(self, wakeup: Wakeup, reload: Callable[[], Settings] | None) -> None:
        self._wakeup = wakeup
        self._reload = reload
        self.draining = self.hung_up = False
        self.fault = ""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:
        del frame
        if number == signal.SIGHUP:
            self.hung_up = True
        else:
            log.info("%s: finishing the slices in hand", signal.Signals(number).name)
            self.draining = True
        self._wakeup.wake()

    def read_again(self, settings: Settings) -> Settings:
        """Return the settings to go on with: faulty new ones change nothing and are reported."""
        self.hung_up = False
        if self._reload is None:
            return settings
        try:
            new = self._reload()
        except ConfigurationError as error:
            self.fault = str(error)
            for fault in error.faults:
                log.error("the settings stay as they were: %s", fault)
            return settings
        self.fault = ""
        changed = {name for name in type(new).model_fields if getattr(new, name) != getattr(settings, name)}
        later = ", ".join(sorted(changed - AT_ONCE)) or "none"
        log.warning("the settings were read again; those that wait for the next start: %s", later)
        return settings.model_copy(update={name: getattr(new, name) for name in changed & AT_ONCE})
