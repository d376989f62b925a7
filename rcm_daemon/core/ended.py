"""The stacks of one instrument that have ended, ten thousand of them in half a megabyte."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np

from rcm_daemon.core.stack import State, digest

if TYPE_CHECKING:
    from rcm_daemon.core.stack import Acquisition

MAX_ENDED_KEPT = 10_000
"""At a hundred stacks a day three months, about as long as the journal keeps them: what comes for a stack
that ended longer ago begins it anew."""
_ROW = np.dtype([("key", "V16"), ("acquisition", "<u4"), ("state", "u1"), ("start", "V8"), ("end", "V8")])
_STATES: tuple[State, ...] = get_args(State)
_FREE = 255
_NONE = bytes(8)  # stands for no digest: none that is one comes out so in 2^64


@dataclass(frozen=True, slots=True)
class Ended:
    """Enough of a stack that has ended to know its start and its end again, and to refuse the rest."""

    acquisition: int
    start: bytes | None
    end: bytes | None
    state: State

    @classmethod
    def of(cls, stack: Acquisition) -> Ended:
        """Sum up an acquisition."""
        start = digest(stack.start) if stack.start is not None else None
        end = digest(stack.end) if stack.end is not None else None
        return cls(stack.acquisition, start, end, stack.ended)


class EndedStacks:
    """What is known of ended stacks by id; of more than `MAX_ENDED_KEPT` the oldest are forgotten.

    All in one piece of memory, taken at once: thousands of small objects that live for months among others
    that live for milliseconds each keep a page of the allocator.

    Attributes
    ----------
    n_forgotten
        Stacks that had to make room.
    """

    def __init__(self) -> None:
        self._hashes = np.zeros(MAX_ENDED_KEPT, np.uint64)  # the beginnings of the keys, to be found by
        self._rows = np.zeros(MAX_ENDED_KEPT, _ROW)
        self._rows["state"] = _FREE
        self._n_written = 0
        self.n_forgotten = 0

    def __len__(self) -> int:
        return int(np.count_nonzero(self._rows["state"] != _FREE))

    def get(self, stack_id: str) -> Ended | None:
        """Return what is known of a stack, None if nothing is."""
        place = self._find(_key(stack_id))
        if place is None:
            return None
        row = self._rows[place]
        start, end = row["start"].tobytes(), row["end"].tobytes()
        return Ended(
            int(row["acquisition"]),
            start if start != _NONE else None,
            end if end != _NONE else None,
            _STATES[row["state"]],
        )

    def remember(self, stack_id: str, ended: Ended) -> None:
        """Take a stack as the newest of them."""
        self.forget(stack_id)
        key, place = _key(stack_id), self._n_written % MAX_ENDED_KEPT
        self._n_written += 1
        self.n_forgotten += int(self._rows["state"][place] != _FREE)
        self._hashes[place] = _beginning(key)
        state = _STATES.index(ended.state)
        self._rows[place] = (key, ended.acquisition, state, ended.start or _NONE, ended.end or _NONE)

    def forget(self, stack_id: str) -> None:
        """Forget a stack, which goes on after all."""
        place = self._find(_key(stack_id))
        if place is not None:
            self._rows["state"][place] = _FREE
            if place == (self._n_written - 1) % MAX_ENDED_KEPT:
                self._n_written -= 1  # most often the newest goes on, and takes no further place then

    def _find(self, key: bytes) -> int | None:
        """Return where the row of a key is, None where it has none."""
        for place in np.flatnonzero(self._hashes == _beginning(key)).tolist():
            row = self._rows[place]
            if row["state"] != _FREE and row["key"].tobytes() == key:
                return int(place)
        return None


def _key(stack_id: str) -> bytes:
    """Return what stands for an id; two of the same are to be expected among 2^64 ids."""
    return hashlib.sha256(stack_id.encode()).digest()[:16]


def _beginning(key: bytes) -> np.uint64:
    return np.uint64(int.from_bytes(key[:8], "little"))
