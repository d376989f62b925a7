"""Memory that the allocator holds and nobody uses, given back to the system while nothing comes.

Slices of 1 MB come and go by the thousand. Between them small things are allocated that stay, so that glibc's
heaps keep holes: what a daemon holds creeps up over hours with nothing more in use.
"""

from __future__ import annotations

import ctypes

QUIET_S = 1.0
"""Giving back takes some milliseconds, which no slice should wait for; instruments pause between stacks."""


class Heap:
    """The allocator's memory; where that is not glibc's nothing is done."""

    def __init__(self) -> None:
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._n_messages = 0
        self._rests_at_s: float | None = None

    def rest(self, now_s: float, n_messages: int) -> None:
        """Give back what is free, once, if nothing has come for `QUIET_S`; `n_messages` have come so far."""
        if n_messages != self._n_messages:
            self._n_messages, self._rests_at_s = n_messages, now_s + QUIET_S
        elif self._rests_at_s is not None and now_s >= self._rests_at_s:
            self._rests_at_s = None
            if self._trim is not None:
                self._trim(0)
