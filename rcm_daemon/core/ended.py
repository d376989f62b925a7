"""The stacks of one instrument that have ended, four hundred of them in some 80 kB."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from rcm_daemon.core.stack import State, digest

if TYPE_CHECKING:
    from rcm_daemon.core.stack import Acquisition

MAX_ENDED_KEPT = 400
"""Four days of a busy clinic: what comes for a stack that ended longer ago begins a new acquisition."""
_PACKED = struct.Struct("<IB8s8s")
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
    """What is known of ended stacks by id; of more than `MAX_ENDED_KEPT` the oldest are forgotten."""

    def __init__(self) -> None:
        self._packed: dict[str, bytes] = {}  # oldest first; as bytes, since a daemon runs for a year

    def get(self, stack_id: str) -> Ended | None:
        """Return what is known of a stack, None if nothing is."""
        packed = self._packed.get(stack_id)
        if packed is None:
            return None
        acquisition, state, start, end = _PACKED.unpack(packed)
        return Ended(
            acquisition, start if start != _NONE else None, end if end != _NONE else None, _STATES[state]
        )

    def remember(self, stack_id: str, ended: Ended) -> None:
        """Take a stack as the newest of them."""
        self.forget(stack_id)
        state = _STATES.index(ended.state)
        self._packed[stack_id] = _PACKED.pack(
            ended.acquisition, state, ended.start or _NONE, ended.end or _NONE
        )
        if len(self._packed) > MAX_ENDED_KEPT:
            del self._packed[next(iter(self._packed))]

    def forget(self, stack_id: str) -> None:
        """Forget a stack, which goes on after all."""
        self._packed.pop(stack_id, None)
