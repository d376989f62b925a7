"""In which order the account is written down: each instrument's in the order of its messages.

A slice's entry is complete when its embedding is there, which takes a while; what came after it waits. So a
crash leaves on disk what was received up to some message of each instrument, and nothing of what came
later. A sender that repeats what was not acknowledged then goes on exactly there.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rcm_daemon.core.account import latest

if TYPE_CHECKING:
    from rcm_daemon.core.account import Row
    from rcm_daemon.core.acknowledgement import Reply


@dataclass
class Entry:
    """What one event of an instrument changes on disk, and who is to be told once it is there."""

    instrument: str
    rows: list[Row] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    is_complete: bool = True
    n_rows_allowed: int = 64
    slice_: tuple[int, int] | None = None

    def absorb(self, later: Entry) -> None:
        """Take over the entry that comes next; rows that others replace are dropped now and then."""
        self.rows += later.rows
        self.replies += later.replies
        if len(self.rows) > self.n_rows_allowed:
            self.rows = latest(self.rows)
            self.n_rows_allowed = max(64, 2 * len(self.rows))


@dataclass
class _Slice:
    """A slice not taken to be written yet: its entry, and the replies that stand or fall with it."""

    entry: Entry
    replies: list[Reply]


class CommitOrder:
    """Entries of all instruments that are not on disk yet."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[Entry]] = {}
        self._slices: dict[tuple[int, int], _Slice] = {}
        self.n_entries = 0

    def add(self, entry: Entry) -> None:
        """Take the next entry of its instrument."""
        queue = self._queues.setdefault(entry.instrument, deque())
        if queue and queue[-1].is_complete and entry.is_complete:
            queue[-1].absorb(entry)
        else:
            queue.append(entry)
            self.n_entries += 1

    def add_slice(self, number: int, index: int, entry: Entry) -> None:
        """Take an entry that is complete once slice `index` of acquisition `number` is settled."""
        entry.is_complete, entry.slice_ = False, (number, index)
        self._slices[number, index] = _Slice(entry, [*entry.replies])
        self.add(entry)

    def follow(self, number: int, index: int, reply: Reply) -> None:
        """Have the answer to a repetition, in an entry of its own, refused too should the slice be."""
        if (waiting := self._slices.get((number, index))) is not None:
            waiting.replies.append(reply)

    def settle(self, number: int, index: int) -> Entry | None:
        """Return the entry of a slice that is settled now, to be filled in; None where it has been before."""
        waiting = self._slices.get((number, index))
        if waiting is None or waiting.entry.is_complete:
            return None
        waiting.entry.is_complete = True
        return waiting.entry

    def refuse(self, number: int, index: int, error: str) -> None:
        """Turn the answers to a slice into refusals, as long as it has not been taken to be written."""
        if (waiting := self._slices.get((number, index))) is not None:
            for reply in waiting.replies:
                reply.refuse(error)

    def take(self) -> list[Entry]:
        """Return what can be written now, in order."""
        taken = []
        for instrument, queue in list(self._queues.items()):
            while queue and queue[0].is_complete:
                entry = queue.popleft()
                taken.append(entry)
                # One that was refused may have come again meanwhile.
                if entry.slice_ is not None and self._slices[entry.slice_].entry is entry:
                    del self._slices[entry.slice_]
            if not queue:
                del self._queues[instrument]
        self.n_entries -= len(taken)
        return taken
