"""What is written down of stacks and instruments, and the live records made of it again.

Every row is taken at the moment a message has been accounted for, and rows are written in the order of
those moments (`commit_order`). So what is on disk is always the account as it was after some message of
each instrument.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rcm_daemon.core.instrument import Instrument, Recent
from rcm_daemon.core.numbering import Numbering
from rcm_daemon.core.records import StackEnd, StackStart
from rcm_daemon.core.rejection import Origin, Rejection, Rule
from rcm_daemon.core.stack import Acquisition, EmbeddedSlice, Received, State

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True)
class InstrumentRow:
    """One instrument's runs and losses; `holes` are ranges of numbers not received."""

    name: str
    run_id: str
    next_number: int
    holes: tuple[range, ...]
    n_lost: int
    older_runs: tuple[tuple[str, int], ...]
    early_rejections: tuple[Rejection, ...]
    recent: tuple[tuple[int, Recent], ...]

    @classmethod
    def of(cls, name: str, known: Instrument) -> InstrumentRow:
        """Take down an instrument as it stands."""
        numbering = known.numbering
        return cls(
            name,
            known.run_id,
            numbering.next_number,
            tuple(numbering.holes),
            numbering.n_lost,
            tuple(known.older_runs.items()),
            tuple(known.early_rejections),
            tuple(known.recent.items()),
        )

    def to_fields(self) -> dict[str, Any]:
        """Return everything but the name, JSON-ready."""
        return {
            "run_id": self.run_id,
            "next_number": self.next_number,
            "holes": [[hole.start, hole.stop] for hole in self.holes],
            "n_lost": self.n_lost,
            "older_runs": [list(run) for run in self.older_runs],
            "early_rejections": [
                {"rule": r.rule.value, "detail": r.detail, "origin": vars(r.origin)}
                for r in self.early_rejections
            ],
            "recent": [
                [number, recent.digest.hex(), recent.is_conflict, recent.slice_]
                for number, recent in self.recent
            ],
        }

    @classmethod
    def from_fields(cls, name: str, fields: dict[str, Any]) -> InstrumentRow:
        """Read what `to_fields` returned."""
        return cls(
            name,
            fields["run_id"],
            fields["next_number"],
            tuple(range(*hole) for hole in fields["holes"]),
            fields["n_lost"],
            tuple((run, n) for run, n in fields["older_runs"]),
            tuple(
                Rejection(Rule(r["rule"]), r["detail"], Origin(**r["origin"]))
                for r in fields["early_rejections"]
            ),
            tuple(
                (number, Recent(bytes.fromhex(mark), is_conflict, tuple(slice_) if slice_ else None))
                for number, mark, is_conflict, slice_ in fields["recent"]
            ),
        )

    def restore(self) -> Instrument:
        """Return the instrument without its stacks."""
        numbering = Numbering()
        numbering.next_number, numbering.n_lost = self.next_number, self.n_lost
        numbering.holes = list(self.holes)
        return Instrument(
            self.run_id,
            numbering,
            OrderedDict(self.older_runs),
            early_rejections=list(self.early_rejections),
            recent=OrderedDict(self.recent),
        )


_PLAIN = (
    "instrument stack_id acquisition run_id first_run_id first_msg_number n_lost_before dtype pixel_size_um "
    "bundle_digest ended n_rejected n_conflicts"
).split()


@dataclass(frozen=True)
class StackRow:
    """One acquisition's account but for its slices and refusals, which have rows of their own."""

    number: int
    plain: tuple[Any, ...]
    shape: tuple[int, int]
    start: StackStart | None
    end: StackEnd | None
    conflict_index: tuple[int, ...]
    revision: int

    @classmethod
    def of(cls, stack: Acquisition) -> StackRow:
        """Take down an acquisition as it stands."""
        return cls(
            stack.number,
            tuple(getattr(stack, name) for name in _PLAIN),
            stack.shape,
            stack.start,
            stack.end,
            tuple(stack.conflict_index),
            stack.revision,
        )

    @property
    def ended(self) -> State:
        """The state that the acquisition had."""
        state: State = self.plain[_PLAIN.index("ended")]
        return state

    def to_fields(self) -> dict[str, Any]:
        """Return everything but the number, JSON-ready."""
        return {
            **dict(zip(_PLAIN, self.plain, strict=True)),
            "shape": list(self.shape),
            "start": self.start.model_dump(by_alias=True, mode="json") if self.start is not None else None,
            "end": self.end.model_dump(by_alias=True, mode="json") if self.end is not None else None,
            "conflict_index": list(self.conflict_index),
            "revision": self.revision,
        }


def restore_stack(
    number: int,
    fields: dict[str, Any],
    received: dict[int, Received],
    rejections: Iterable[RejectionRow],
    now_s: float,
) -> Acquisition:
    """Make an acquisition again of its row's fields; its slices wait to be labelled."""
    start, end = fields["start"], fields["end"]
    stack = Acquisition(
        **{name: fields[name] for name in _PLAIN if name not in ("ended", "n_rejected", "n_conflicts")},
        number=number,
        shape=tuple(fields["shape"]),
        touched_s=now_s,
        start=StackStart.model_validate(start) if start is not None else None,
        end=StackEnd.model_validate(end) if end is not None else None,
    )
    stack.ended = fields["ended"]
    stack.received = received
    stack.pending = set(received)
    stack.revision = fields["revision"]
    stack.n_conflicts, stack.conflict_index = fields["n_conflicts"], list(fields["conflict_index"])
    for row in rejections:
        stack.rejected_index.append(row.index)
        stack.rejected_reason.append(row.reason)
    stack.n_rejected = max(fields["n_rejected"], len(stack.rejected_index))
    return stack


@dataclass(frozen=True)
class SliceRow:
    """One accepted slice of an acquisition: how to know it again, and its embedding."""

    number: int
    received: Received
    embedded: EmbeddedSlice


@dataclass(frozen=True)
class DroppedSliceRow:
    """A slice that had been accepted is refused after all."""

    number: int
    index: int


@dataclass(frozen=True)
class RejectionRow:
    """The `ordinal`-th refusal that an acquisition lists."""

    number: int
    ordinal: int
    index: int
    reason: str


@dataclass(frozen=True)
class ResultRow:
    """The newest final message of an acquisition that has ended, as published."""

    number: int
    message: str


Row = InstrumentRow | StackRow | SliceRow | DroppedSliceRow | RejectionRow | ResultRow


def new_rejections(stack: Acquisition, n_seen: int, next_ordinal: int) -> list[RejectionRow]:
    """Return rows for the refusals listed since the first `n_seen`."""
    listed = zip(stack.rejected_index[n_seen:], stack.rejected_reason[n_seen:], strict=True)
    return [
        RejectionRow(stack.number, ordinal, index, reason)
        for ordinal, (index, reason) in enumerate(listed, next_ordinal)
    ]


def latest(rows: Sequence[Row]) -> list[Row]:
    """Leave out rows that a later one replaces."""
    last = {_place(row): position for position, row in enumerate(rows)}
    return [row for position, row in enumerate(rows) if last[_place(row)] == position]


def _place(row: Row) -> tuple[Literal["instrument", "stack", "slice", "rejection", "result"], Any, int]:
    match row:
        case InstrumentRow():
            return "instrument", row.name, 0
        case StackRow():
            return "stack", row.number, 0
        case SliceRow():
            return "slice", row.number, row.embedded.index
        case DroppedSliceRow():
            return "slice", row.number, row.index
        case RejectionRow():
            return "rejection", row.number, row.ordinal
        case ResultRow():
            return "result", row.number, 0
