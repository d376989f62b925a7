"""The stacks of one instrument that have ended, four hundred of them in 15 kB."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from rcm_daemon.core.stack import State, digest

if TYPE_CHECKING:
    from rcm_daemon.core.stack import Acquisition

MAX_ENDED_KEPT = 400
"""Four days of a busy clinic: what comes for a stack that ended longer ago begins a new acquisition."""
_PACKED = struct.Struct("<16sIB8s8s")
_STATES: tuple[State, ...] = get_args(State)
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

    All in one piece of memory: thousands of small objects that live for days among others that live for
    milliseconds each keep a page of the allocator.
    """

    def __init__(self) -> None:
        self._records = bytearray()  # oldest first

    def __len__(self) -> int:
        return len(self._records) // _PACKED.size

    def get(self, stack_id: str) -> Ended | None:
        """Return what is known of a stack, None if nothing is."""
        place = self._find(stack_id)
        if place < 0:
            return None
        _, acquisition, state, start, end = _PACKED.unpack_from(self._records, place)
        return Ended(
            acquisition, start if start != _NONE else None, end if end != _NONE else None, _STATES[state]
        )

    def remember(self, stack_id: str, ended: Ended) -> None:
        """Take a stack as the newest of them."""
        self.forget(stack_id)
        state = _STATES.index(ended.state)
        self._records += _PACKED.pack(
            _key(stack_id), ended.acquisition, state, ended.start or _NONE, ended.end or _NONE
        )
        if len(self) > MAX_ENDED_KEPT:
            del self._records[: _PACKED.size]

    def forget(self, stack_id: str) -> None:
        """Forget a stack, which goes on after all."""
        place = self._find(stack_id)
        if place >= 0:
            del self._records[place : place + _PACKED.size]

    def _find(self, stack_id: str) -> int:
        """Return where a stack's record begins, -1 where it has none."""
        key = _key(stack_id)
        place = self._records.find(key)
        while place > 0 and place % _PACKED.size:
            place = self._records.find(key, place + 1)
        return place


def _key(stack_id: str) -> bytes:
    """Return what stands for an id; two of the same are to be expected among 2^64 ids."""
    return hashlib.sha256(stack_id.encode()).digest()[:16]
