"""The account on disk: what each message changed, written in order, and answered once it is there."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rcm_daemon.core.account import (
    DroppedSliceRow,
    InstrumentRow,
    ResultRow,
    SliceRow,
    StackRow,
    new_rejections,
    restore_stack,
)
from rcm_daemon.core.commit_order import CommitOrder, Entry
from rcm_daemon.core.ended import Ended
from rcm_daemon.core.instrument import Instrument
from rcm_daemon.core.rejection import Origin, Rejection, Rule
from rcm_daemon.errors import JournalDamagedError, RcmError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rcm_daemon.core.account import Row
    from rcm_daemon.core.acknowledgement import Reply
    from rcm_daemon.core.ledger import Ledger
    from rcm_daemon.core.stack import Acquisition, EmbeddedSlice, Received
    from rcm_daemon.io.journal import Journal
    from rcm_daemon.io.journal_writer import JournalWriter

MAX_UNWRITTEN = 20_000
"""With so much that cannot be written no further slices are read, so that memory stays bounded."""


@dataclass
class Restored:
    """A stack as it was written: its slices, to be labelled again, and whether its result was published."""

    stack: Acquisition
    embedded: list[EmbeddedSlice]
    has_result: bool


@dataclass
class _Written:
    """How many of a stack's listed refusals have rows, and the next one's ordinal."""

    n_seen: int = 0
    next_ordinal: int = 0


class Recording:
    """Writes down what the ledger decides, and holds answers back until it is on disk.

    Parameters
    ----------
    ledger
        Is filled from the journal.
    journal
        Read here, then left to the writer.
    writer
        Writes a batch of rows at a time.
    """

    def __init__(self, ledger: Ledger, journal: Journal, writer: JournalWriter) -> None:
        self._ledger = ledger
        self._order = CommitOrder()
        self._refusals: dict[int, _Written] = {}
        self._instrument_rows: dict[str, InstrumentRow] = {}
        self._replies: list[Reply] = []  # of the batch that is being written
        self._n_being_written = 0
        self._unprinted: list[Received] = []
        self.restored = self._restore(journal)
        self.n_damaged = journal.n_damaged
        self.writer = writer

    @property
    def has_room(self) -> bool:
        """Whether more can be taken in."""
        return self._order.n_entries < MAX_UNWRITTEN

    @property
    def n_unwritten(self) -> int:
        """Entries that are not on disk yet, those being written among them."""
        return self._order.n_entries + self._n_being_written

    @property
    def is_settled(self) -> bool:
        """Whether all is on disk and answered."""
        return not self.n_unwritten

    def note(
        self,
        instrument: str,
        stacks: Iterable[Acquisition] = (),
        reply: Reply | None = None,
        slice_: tuple[Acquisition, int] | None = None,
        repeats: tuple[int, int] | None = None,
    ) -> None:
        """Write down an instrument and some of its stacks as they are now.

        `slice_` is what has to be embedded before this, and all that comes after it, can be written;
        `repeats` is the acquisition's number and the index of the slice that the message repeats.
        """
        entry = Entry(instrument, replies=[reply] if reply is not None else [])
        known = self._ledger.instrument(instrument)
        if known is not None:
            row = InstrumentRow.of(instrument, known)
            if self._instrument_rows.get(instrument) != row:
                self._instrument_rows[instrument] = row
                entry.rows.append(row)
        for stack in stacks:
            entry.rows += [StackRow.of(stack), *self._new_rejections(stack)]
        if slice_ is not None:
            self._order.add_slice(slice_[0].number, slice_[1], entry)
        elif entry.rows or entry.replies:
            self._order.add(entry)
            if repeats is not None and reply is not None:
                self._order.follow(*repeats, reply)

    def embedded(self, stack: Acquisition, new: EmbeddedSlice) -> None:
        """Write down an accepted slice's embedding."""
        if (entry := self._order.settle(stack.number, new.index)) is not None:
            received = stack.received[new.index]
            entry.rows.append(SliceRow(stack.number, received, new))
            self._unprinted.append(received)

    def refused(self, stack: Acquisition, index: int, error: str) -> None:
        """Write down that an accepted slice turned out unusable."""
        if not self.settle_refused(stack, index, error):  # it is written as accepted
            rows: list[Row] = [DroppedSliceRow(stack.number, index), StackRow.of(stack)]
            self._order.add(Entry(stack.instrument, rows + self._new_rejections(stack)))

    def settle_refused(self, stack: Acquisition, index: int, error: str) -> bool:
        """Write that down if the slice has no embedding yet, and refuse who waits; whether it had none."""
        self._order.refuse(stack.number, index, error)
        entry = self._order.settle(stack.number, index)
        if entry is None:
            return False
        entry.rows += self._new_rejections(stack)
        return True

    def result(self, stack: Acquisition, message: str) -> None:
        """Write down the final message of a stack that has ended."""
        self._order.add(Entry(stack.instrument, [StackRow.of(stack), ResultRow(stack.number, message)]))

    def advance(self) -> list[Reply]:
        """Start writing what can be written; returns the answers whose cause is on disk now.

        Called when results are out: the fingerprints that are taken here would hold them up.

        Raises
        ------
        JournalDamagedError
            The journal has turned out damaged.
        RcmError
            Nothing would ever be written again.
        """
        if self.writer.damage:
            raise JournalDamagedError(self.writer.damage)
        if self.writer.death:
            raise RcmError(self.writer.death)
        while self._unprinted:  # whether it can be written or not: until then the whole slice is kept
            _ = self._unprinted.pop().fingerprint
        due: list[Reply] = []
        if self.writer.take_written():
            due, self._replies = self._replies, []
            self._n_being_written = 0
        if self.writer.is_free and (entries := self._order.take()):
            rows = [row for entry in entries for row in entry.rows]
            replies = [reply for entry in entries for reply in entry.replies]
            if rows:
                self._replies, self._n_being_written = replies, len(entries)
                self.writer.submit(rows)
            else:
                due += replies
        return due

    def close(self) -> None:
        """Write no more than what is being written."""
        self.writer.close()

    def _new_rejections(self, stack: Acquisition) -> list[Row]:
        if not stack.rejected_index:
            return []
        written = self._refusals.setdefault(stack.number, _Written())
        rows = new_rejections(stack, written.n_seen, written.next_ordinal)
        written.n_seen += len(rows)
        written.next_ordinal += len(rows)
        if stack.ended != "open" and len(self._refusals) > 1_000:
            self._refusals.pop(next(iter(self._refusals)))
        return [*rows]

    def _restore(self, journal: Journal) -> list[Restored]:
        """Fill the ledger from the journal; returns the stacks that go on, and each instrument's last."""
        now_s = time.monotonic()
        for row in journal.instruments()[-self._ledger.max_instruments :]:
            self._instrument_rows[row.name] = row
            self._ledger.adopt(row.name, row.restore())
        has_result = journal.has_result()
        stacks = journal.stacks()
        accounts = sorted(stacks.items())
        last = {fields["instrument"]: number for number, fields in accounts}
        restored = []
        for number, fields in accounts:
            known = self._ledger.instrument(fields["instrument"])
            if known is None:
                known = Instrument(stacks[last[fields["instrument"]]]["run_id"])
                self._ledger.adopt(fields["instrument"], known)
            goes_on = number not in has_result or number == last[fields["instrument"]]
            if not goes_on:
                known.ended.remember(
                    fields["stack_id"], Ended.of(restore_stack(number, fields, {}, [], now_s))
                )
                continue
            received, embedded, n_damaged = journal.slices(number)
            refusals = journal.rejections(number)
            stack = restore_stack(number, fields, received, refusals, now_s)
            if stack.ended == "open" and number != last[stack.instrument]:
                stack.ended = "incomplete"  # its end is among what was damaged
            if stack.ended != "open":
                known.note_ended(stack)
            known.current = stack
            next_ordinal = max((row.ordinal for row in refusals), default=-1) + 1
            self._refusals[number] = _Written(len(refusals), next_ordinal)
            for _ in range(n_damaged):
                detail = "a slice that was stored is damaged on disk; it may be sent again"
                origin = Origin(stack.instrument, stack.run_id, -1, "slice", stack.stack_id)
                stack.note_rejection(Rejection(Rule.DAMAGED, detail, origin))
            restored.append(Restored(stack, embedded, number in has_result))
        for name in {fields["instrument"] for fields in stacks.values()}:
            if (known := self._ledger.instrument(name)) is not None:
                # Its row may be older than a refusal: what has no row of its own was not stored.
                for number in known.recent_acquisitions & stacks.keys():
                    known.forget_absent(number, journal.indices(number))
        self._ledger.next_number = journal.next_number()
        return restored
