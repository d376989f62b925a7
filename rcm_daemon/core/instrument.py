"""What is known of one instrument: its run, what it lost, its last stack, and those that ended before."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rcm_daemon.core.ended import Ended, EndedStacks
from rcm_daemon.core.numbering import Numbering

if TYPE_CHECKING:
    from collections.abc import Container

    from rcm_daemon.core.rejection import Rejection
    from rcm_daemon.core.stack import Acquisition

MAX_RUNS_KEPT = 256
MAX_EARLY_REJECTIONS = 100
MAX_RECENT = 64
"""So many of a run's last messages are known again: as many as a sender may have unanswered."""


@dataclass(frozen=True)
class Recent:
    """A message that was taken: its digest, and for a slice the acquisition's number and the index."""

    digest: bytes
    is_conflict: bool = False
    slice_: tuple[int, int] | None = None


@dataclass
class Instrument:
    """One instrument's account; mutated by the ledger and nobody else.

    `older_runs` holds what each run before the present one had lost. `current` is the stack opened last;
    `abandoned` ones may be reopened. `early_rejections` are of a stack that is not open yet. `recent` holds
    the messages taken last, by number.
    """

    run_id: str
    numbering: Numbering = field(default_factory=Numbering)
    older_runs: OrderedDict[str, int] = field(default_factory=OrderedDict)
    current: Acquisition | None = None
    ended: EndedStacks = field(default_factory=EndedStacks)
    early_rejections: list[Rejection] = field(default_factory=list)
    recent: OrderedDict[int, Recent] = field(default_factory=OrderedDict)

    @property
    def open(self) -> Acquisition | None:
        """The stack that is open."""
        return self.current if self.current is not None and self.current.ended == "open" else None

    def begin_run(self, run_id: str) -> None:
        """Start counting anew; what the run so far has lost stays known."""
        self.older_runs[self.run_id] = self.numbering.n_lost
        if len(self.older_runs) > MAX_RUNS_KEPT:
            self.older_runs.popitem(last=False)
        self.run_id = run_id
        self.numbering = Numbering()
        self.recent.clear()

    def take(self, number: int, recent: Recent) -> None:
        """Remember a message that was taken."""
        self.recent[number] = recent
        if len(self.recent) > MAX_RECENT:
            self.recent.popitem(last=False)

    def forget(self, slice_: tuple[int, int]) -> None:
        """Forget a slice that turned out unusable, so that it may be sent again."""
        for number in [number for number, recent in self.recent.items() if recent.slice_ == slice_]:
            del self.recent[number]

    @property
    def recent_acquisitions(self) -> set[int]:
        """Numbers of the acquisitions whose slices are among `recent`."""
        return {recent.slice_[0] for recent in self.recent.values() if recent.slice_ is not None}

    def forget_absent(self, number: int, indices: Container[int]) -> None:
        """Forget the slices of an acquisition that are not among `indices` any more."""
        for slice_ in [recent.slice_ for recent in self.recent.values() if recent.slice_ is not None]:
            if slice_[0] == number and slice_[1] not in indices:
                self.forget(slice_)

    def note_early(self, rejection: Rejection) -> None:
        """Keep a refusal for the stack that it names, should that open."""
        if self.early_rejections and self.early_rejections[0].origin.stack_id != rejection.origin.stack_id:
            self.early_rejections.clear()
        if len(self.early_rejections) < MAX_EARLY_REJECTIONS:
            self.early_rejections.append(rejection)

    def note_ended(self, stack: Acquisition) -> None:
        """Remember a stack that has just ended."""
        self.ended.remember(stack.stack_id, Ended.of(stack))
