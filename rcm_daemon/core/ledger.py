"""The account of all instruments: which stack is open, what was lost, refused, repeated.

Pure: it is given parsed messages and a monotonic time, and answers with what there is to do. The daemon and
`replay` both stand on it, so that a stack means the same in both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from rcm_daemon.core.admission import origin_of
from rcm_daemon.core.instrument import Instrument, Recent
from rcm_daemon.core.records import Heartbeat, Slice, StackEnd, StackStart
from rcm_daemon.core.rejection import Origin, Rejection, Rule
from rcm_daemon.core.stack import Acquisition, Received, State, digest

if TYPE_CHECKING:
    from collections.abc import Collection

    from rcm_daemon.core.records import Message, SliceHeader, StrataEstimate
    from rcm_daemon.core.stack import PartialStack

Status = Literal["accepted", "duplicate", "conflict"]


@dataclass
class Outcome:
    """What one message did.

    `embed` is the acquisition whose slice is to be embedded now; `changed` are those whose account changed
    and whose state is to be published, ended ones first.
    """

    status: Status = "accepted"
    embed: Acquisition | None = None
    changed: list[Acquisition] = field(default_factory=list)


class Ledger:
    """Keeps the promise that every message is accounted for.

    Parameters
    ----------
    idle_timeout_s
        After this long without a message a stack is `abandoned`.
    max_instruments
        Messages of further instruments are refused.

    Attributes
    ----------
    bundle_digest
        Stacks that open from now on are labelled with this bundle.
    next_number
        The next acquisition's number.
    """

    def __init__(self, idle_timeout_s: float = 120.0, max_instruments: int = 64) -> None:
        self.idle_timeout_s = idle_timeout_s
        self.max_instruments = max_instruments
        self.bundle_digest = ""
        self.next_number = 1
        self._instruments: dict[str, Instrument] = {}

    def n_lost(self, instrument: str, run_id: str | None = None) -> int:
        """How many messages of this instrument's run are known to be lost; of an older one, when it ended."""
        known = self._instruments.get(instrument)
        if known is None:
            return 0
        return known.numbering.n_lost if run_id in (None, known.run_id) else known.older_runs.get(run_id, 0)

    @property
    def n_lost_now(self) -> int:
        """How many messages of all instruments' present runs are known to be lost."""
        return sum(known.numbering.n_lost for known in self._instruments.values())

    @property
    def n_forgotten(self) -> int:
        """Ended stacks of all instruments that had to make room: what comes for them begins them anew."""
        return sum(known.ended.n_forgotten for known in self._instruments.values())

    def instrument(self, name: str) -> Instrument | None:
        """Return what is known of an instrument."""
        return self._instruments.get(name)

    def adopt(self, name: str, known: Instrument) -> None:
        """Take over an instrument as it was before a restart."""
        self._instruments[name] = known

    def abandon(
        self, stack: Acquisition, rule: Rule, detail: str, kept: Collection[int] = ()
    ) -> list[Rejection]:
        """End a stack whose slices in hand can no longer be labelled; they are refused.

        Not those that are `kept`, for there is a result of them; then a stack that has ended stays as it is.
        """
        lost = sorted(stack.pending.difference(kept))
        rejections = [self.unusable(stack, index, rule, detail) for index in lost]
        if not kept or stack.ended == "open":
            self._close(self._instruments[stack.instrument], stack, "abandoned")
        return rejections

    def slice_of(self, message: Slice) -> tuple[int, int] | None:
        """Return acquisition number and index of the slice that the message just taken is, or repeats."""
        recent = self._instruments[message.header.instrument].recent.get(message.header.msg_number)
        return recent.slice_ if recent is not None else None

    def open_stacks(self) -> list[Acquisition]:
        """Return the open acquisitions, one an instrument at most."""
        return [known.open for known in self._instruments.values() if known.open is not None]

    def accept(self, message: Message, now_s: float) -> Outcome:
        """Account for one well-formed message.

        Raises
        ------
        Rejection
            When a rule of the account is broken; the message is already accounted for as refused.
        """
        header = message.header if isinstance(message, Slice) else message
        origin = origin_of(message)
        try:
            known = self._instrument(origin, header.run_id)
            n_lost = known.numbering.n_lost
            if isinstance(message, Heartbeat):
                outcome = self._heartbeat(known, message, now_s)
            else:
                outcome = self._counted(known, message, origin, now_s)
        except Rejection as rejection:
            self._note(rejection)
            raise
        changed_loss = known.numbering.n_lost != n_lost
        if (
            changed_loss
            and known.open is not None
            and known.open not in outcome.changed
            and not outcome.embed
        ):
            outcome.changed.append(known.open)
        return outcome

    def reports(self, rejection: Rejection) -> Acquisition | None:
        """Return the stack that reports a refusal by `accept`: the instrument's last, if it is that one."""
        known = self._instruments.get(rejection.origin.instrument)
        current = known.current if known is not None and rejection.rule is not Rule.OLD_RUN else None
        return current if current is not None and current.stack_id == rejection.origin.stack_id else None

    def refuse(self, rejection: Rejection) -> Acquisition | None:
        """Account for a message that could not be parsed; returns the stack that reports it, if any."""
        origin = rejection.origin
        if origin.is_numbered and origin.run_id is not None:
            try:
                self._instrument(origin, origin.run_id).numbering.observe(origin.msg_number)
            except Rejection:
                return None
        return self._note(rejection)

    def labelled(self, acquisition: Acquisition, partial: PartialStack, estimate: StrataEstimate) -> None:
        """Take over the partial stack with one slice more, and what is now estimated of it."""
        acquisition.pending -= {s.index for s in partial.slices}
        acquisition.partial = partial
        acquisition.estimate = estimate

    def unusable(self, acquisition: Acquisition, index: int, rule: Rule, detail: str) -> Rejection:
        """Refuse an accepted slice that could not be embedded or labelled; it may be sent again."""
        acquisition.pending.discard(index)
        acquisition.received.pop(index, None)
        self._instruments[acquisition.instrument].forget((acquisition.number, index))
        origin = Origin(acquisition.instrument, acquisition.run_id, -1, "slice", acquisition.stack_id, index)
        rejection = Rejection(rule, detail, origin)
        acquisition.note_rejection(rejection)
        return rejection

    def expire(self, now_s: float) -> list[Acquisition]:
        """End the stacks that have been idle for too long; returns them."""
        idle = [a for a in self.open_stacks() if now_s - a.touched_s >= self.idle_timeout_s]
        for acquisition in idle:
            self._close(self._instruments[acquisition.instrument], acquisition, "abandoned")
        return idle

    def next_expiry_s(self) -> float | None:
        """When the next open stack would be abandoned (monotonic seconds); None when none is open."""
        times = [a.touched_s + self.idle_timeout_s for a in self.open_stacks()]
        return min(times, default=None)

    def _instrument(self, origin: Origin, run_id: str) -> Instrument:
        known = self._instruments.get(origin.instrument)
        if known is None:
            if len(self._instruments) >= self.max_instruments:
                detail = (
                    f"at most {self.max_instruments} instruments are served, {origin.instrument} is one more"
                )
                raise Rejection(Rule.TOO_MANY_INSTRUMENTS, detail, origin)
            known = self._instruments[origin.instrument] = Instrument(run_id)
        if run_id in known.older_runs:
            detail = f"run {run_id!a} of {origin.instrument} was followed by {known.run_id!a}"
            raise Rejection(Rule.OLD_RUN, detail, origin)
        if run_id != known.run_id:
            known.begin_run(run_id)
        return known

    def _note(self, rejection: Rejection) -> Acquisition | None:
        origin = rejection.origin
        known = self._instruments.get(origin.instrument)
        if known is None or not origin.stack_id or rejection.rule is Rule.OLD_RUN:
            return None
        # An ended stack reports what still comes for it, since a publisher gets no other answer.
        if known.current is not None and known.current.stack_id == origin.stack_id:
            known.current.note_rejection(rejection)
            return known.current
        if rejection.rule is Rule.STACK_ENDED:
            return None
        known.note_early(rejection)
        return None

    def _counted(
        self, known: Instrument, message: StackStart | StackEnd | Slice, origin: Origin, now_s: float
    ) -> Outcome:
        """Account for a message with a number of its own; one that is sent again does nothing."""
        seen = known.numbering.observe(origin.msg_number) == "repeated"
        mark = digest(message)
        recent = known.recent.get(origin.msg_number) if seen else None
        if recent is not None and recent.digest == mark and not self._tells_by_picture(known, origin):
            return Outcome("conflict" if recent.is_conflict else "duplicate")
        if isinstance(message, StackStart):
            outcome = self._start(known, message, now_s)
        elif isinstance(message, StackEnd):
            outcome = self._end(known, message, origin, now_s)
        else:
            outcome = self._slice(known, message, origin, now_s)
        current = known.current
        is_current = current is not None and current.stack_id == origin.stack_id and origin.htype == "slice"
        slice_ = (current.number, origin.index) if current is not None and is_current else None
        known.take(origin.msg_number, Recent(mark, outcome.status == "conflict", slice_))
        return outcome

    def _heartbeat(self, known: Instrument, message: Heartbeat, now_s: float) -> Outcome:
        known.numbering.observe_highest(message.msg_number)
        if known.open is not None and message.stack_id == known.open.stack_id:
            known.open.touched_s = now_s
        return Outcome()

    def _start(self, known: Instrument, message: StackStart, now_s: float) -> Outcome:
        open_ = known.open
        if open_ is not None and open_.stack_id == message.stack_id:
            if open_.start == message:
                return Outcome("duplicate")
            if open_.start is None and open_.run_id == message.run_id and not _starts_anew(open_, message):
                open_.start = message
                open_.touched_s = now_s
                return Outcome(changed=[open_])
        ended = known.ended.get(message.stack_id)
        if ended is not None and ended.start == digest(message):
            return Outcome("duplicate")
        changed = self._displace(known)
        acquisition = self._open(known, message, now_s)
        acquisition.start = message
        return Outcome(changed=[*changed, acquisition])

    def _end(self, known: Instrument, message: StackEnd, origin: Origin, now_s: float) -> Outcome:
        acquisition = known.current
        ended = known.ended.get(message.stack_id)
        if ended is not None and ended.end == digest(message):
            return Outcome("duplicate")
        if acquisition is None or acquisition.stack_id != message.stack_id:
            self._refuse_ended(known, origin)
            raise Rejection(
                Rule.STACK_NOT_OPEN, f"stack_end of {message.stack_id!a}, which is not open", origin
            )
        if acquisition.ended not in ("open", "abandoned"):
            self._refuse_ended(known, origin)
        acquisition.end = message
        acquisition.touched_s = now_s
        if message.reason == "aborted":
            self._close(known, acquisition, "aborted")
        elif acquisition.is_stranded:
            self._close(known, acquisition, "abandoned")
        else:
            self._close(known, acquisition, "incomplete" if acquisition.missing_index else "complete")
        return Outcome(changed=[acquisition])

    @staticmethod
    def _tells_by_picture(known: Instrument, origin: Origin) -> bool:
        """Whether a slice that comes again is compared with the first by its bytes, in the stack at hand."""
        stack = known.current
        return (
            origin.htype == "slice"
            and stack is not None
            and (stack.stack_id, stack.ended) == (origin.stack_id, "open")
            and origin.index in stack.received
            and origin.msg_number >= stack.first_msg_number
        )

    def _slice(self, known: Instrument, message: Slice, origin: Origin, now_s: float) -> Outcome:
        header = message.header
        acquisition = known.current
        changed: list[Acquisition] = []
        if acquisition is None or acquisition.stack_id != header.stack_id:
            self._refuse_ended(known, origin)
            changed = self._displace(known)
            acquisition = self._open(known, header, now_s)
        elif acquisition.ended not in ("open", "abandoned"):
            self._refuse_ended(known, origin)
        _check_same_kind(acquisition, message, origin)
        if acquisition.ended == "abandoned":
            acquisition.ended = "open"
            known.ended.forget(acquisition.stack_id)
        acquisition.touched_s = now_s
        acquisition.run_id = header.run_id
        seen = acquisition.received.get(header.index)
        new = Received(header.z_um, slice_=message)
        if seen == new:  # the sender that repeats is answered again with the same state
            return Outcome("duplicate", changed=[*changed, acquisition])
        if seen is not None:
            acquisition.note_conflict(header.index)
            return Outcome("conflict", changed=[*changed, acquisition])
        acquisition.received[header.index] = new
        acquisition.pending.add(header.index)
        return Outcome(embed=acquisition, changed=changed)

    def _open(self, known: Instrument, header: StackStart | SliceHeader, now_s: float) -> Acquisition:
        before = known.ended.get(header.stack_id)
        acquisition = Acquisition(
            instrument=header.instrument,
            stack_id=header.stack_id,
            acquisition=before.acquisition + 1 if before else 1,
            run_id=header.run_id,
            first_msg_number=header.msg_number,
            n_lost_before=known.numbering.n_lost,
            number=self.next_number,
            first_run_id=header.run_id,
            bundle_digest=self.bundle_digest,
            shape=header.shape,
            dtype=header.dtype,
            pixel_size_um=header.pixel_size_um,
            touched_s=now_s,
        )
        self.next_number += 1
        for rejection in known.early_rejections:
            if rejection.origin.stack_id == header.stack_id:
                acquisition.note_rejection(rejection)
        known.early_rejections.clear()
        known.current = acquisition
        return acquisition

    def _displace(self, known: Instrument) -> list[Acquisition]:
        """End the open stack because another begins: without its end, only what proves whole is complete.

        Proof is the planned count, or, where none was given, that no message was lost since the stack opened,
        in one and the same run: what another run's messages were, its numbers do not say.
        """
        open_ = known.open
        if open_ is None:
            return []
        # By index: a refused slice that came again in good order is one slice, and not every refusal is one.
        n_accounted_for = len(open_.received.keys() | {i for i in open_.rejected_index if i >= 0})
        counted = n_accounted_for >= open_.n_expected > 0
        one_run = known.run_id == open_.run_id == open_.first_run_id
        gapless = not open_.n_expected and one_run and known.numbering.n_lost <= open_.n_lost_before
        whole = not open_.missing_index and (counted or gapless)
        self._close(known, open_, "complete" if whole else "incomplete")
        return [open_]

    def _close(self, known: Instrument, acquisition: Acquisition, state: State) -> None:
        acquisition.ended = state
        known.note_ended(acquisition)

    def _refuse_ended(self, known: Instrument, origin: Origin) -> None:
        ended = known.ended.get(origin.stack_id)
        if ended is not None:
            detail = f"{origin.htype} of {origin.stack_id!a}, which has ended ({ended.state})"
            raise Rejection(Rule.STACK_ENDED, detail, origin)


def _starts_anew(acquisition: Acquisition, message: StackStart) -> bool:
    """Whether a start that comes after slices begins the stack again rather than coming late."""
    return message.msg_number > acquisition.first_msg_number


def _check_same_kind(acquisition: Acquisition, message: Slice, origin: Origin) -> None:
    header = message.header
    where = f"slice {header.index} of {header.stack_id!a}"
    if header.shape != acquisition.shape:
        detail = f"{where} is {header.shape}, its stack {acquisition.shape}"
        raise Rejection(Rule.SHAPE_CHANGED, detail, origin)
    if header.dtype != acquisition.dtype:
        raise Rejection(
            Rule.DTYPE_CHANGED, f"{where} is {header.dtype}, its stack {acquisition.dtype}", origin
        )
    if header.pixel_size_um != acquisition.pixel_size_um:
        detail = f"{where} has {header.pixel_size_um} um a pixel, its stack {acquisition.pixel_size_um}"
        raise Rejection(Rule.PITCH_CHANGED, detail, origin)
