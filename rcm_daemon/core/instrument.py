"""What is known of one instrument: its run, what it lost, its last stack, and those that ended before."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rcm_daemon.core.numbering import Numbering
from rcm_daemon.core.stack import digest

if TYPE_CHECKING:
    from rcm_daemon.core.records import SliceHeader
    from rcm_daemon.core.rejection import Rejection
    from rcm_daemon.core.stack import Acquisition, Received, State

MAX_RUNS_KEPT = 256
MAX_ENDED_KEPT = 10_000
MAX_EARLY_REJECTIONS = 100
MAX_ENDED_WITH_SLICES = 64
"""So many of an instrument's last ended stacks know their slices again: as many as may be in flight."""


@dataclass(slots=True)
class Ended:
    """Enough of an ended stack to know its messages again; `received` while it is recent."""

    acquisition: int
    start: bytes | None
    end: bytes | None
    state: State
    received: dict[int, Received] | None = None

    @classmethod
    def of(cls, stack: Acquisition) -> Ended:
        """Sum up an acquisition."""
        start = digest(stack.start) if stack.start is not None else None
        end = digest(stack.end) if stack.end is not None else None
        return cls(stack.acquisition, start, end, stack.ended, stack.received)


@dataclass
class Instrument:
    """One instrument's account; mutated by the ledger and nobody else.

    `older_runs` holds what each run before the present one had lost. `current` is the stack opened last;
    `abandoned` ones may be reopened. `early_rejections` are of a stack that is not open yet.
    """

    run_id: str
    numbering: Numbering = field(default_factory=Numbering)
    older_runs: OrderedDict[str, int] = field(default_factory=OrderedDict)
    current: Acquisition | None = None
    ended: OrderedDict[str, Ended] = field(default_factory=OrderedDict)
    early_rejections: list[Rejection] = field(default_factory=list)

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

    def note_early(self, rejection: Rejection) -> None:
        """Keep a refusal for the stack that it names, should that open."""
        if self.early_rejections and self.early_rejections[0].origin.stack_id != rejection.origin.stack_id:
            self.early_rejections.clear()
        if len(self.early_rejections) < MAX_EARLY_REJECTIONS:
            self.early_rejections.append(rejection)

    def note_ended(self, stack: Acquisition) -> None:
        """Remember a stack that has just ended."""
        self.remember(stack.stack_id, Ended.of(stack))

    def remember(self, stack_id: str, ended: Ended) -> None:
        """Take over what is known of an ended stack as the newest of them."""
        self.ended.pop(stack_id, None)
        self.ended[stack_id] = ended
        if len(self.ended) > MAX_ENDED_KEPT:
            self.ended.popitem(last=False)
        for position, older in enumerate(reversed(self.ended.values())):
            if position == MAX_ENDED_WITH_SLICES:
                older.received = None
                break

    def took_before(self, header: SliceHeader, new: Received) -> bool:
        """Whether a slice comes again that an ended stack had taken, not one of the present stack."""
        ended = self.ended.get(header.stack_id)
        if ended is None or ended.received is None or ended.received.get(header.index) != new:
            return False
        current = self.current
        if current is None or current.stack_id != header.stack_id:
            return True
        if current.ended == "open" and current.acquisition > ended.acquisition:
            return header.run_id == current.first_run_id and header.msg_number < current.first_msg_number
        return current.ended != "abandoned"
