"""The daemon's loop: slices in, strata out, questions answered; networks run in processes of their own."""

from __future__ import annotations

import gc
import logging
import math
import select
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from rcm_daemon.bundles import Bundles
from rcm_daemon.core.acknowledgement import Reply
from rcm_daemon.core.admission import check_instrument, may_account, origin_of
from rcm_daemon.core.ledger import Ledger
from rcm_daemon.core.message import Latency
from rcm_daemon.core.pseudonyms import Pseudonyms
from rcm_daemon.core.records import Slice
from rcm_daemon.core.rejection import Rejection, Rule
from rcm_daemon.core.wire import parse
from rcm_daemon.dormant import Dormant
from rcm_daemon.endpoints import Endpoints
from rcm_daemon.errors import InferenceError
from rcm_daemon.health import Counts, Health
from rcm_daemon.inference import (
    Desk,
    Embedded,
    Inference,
    Labelled,
    NewSlice,
    NotOpened,
    Opened,
    Outcome,
    SliceJob,
    Unusable,
)
from rcm_daemon.io.heap import Heap
from rcm_daemon.io.journal_salvage import damage_noted, open_journal
from rcm_daemon.io.journal_writer import JournalWriter
from rcm_daemon.io.state_dir import StateDir
from rcm_daemon.io.wakeup import Wakeup
from rcm_daemon.lifecycle import Lifecycle
from rcm_daemon.publishing import Publishing
from rcm_daemon.questions import Questions
from rcm_daemon.recording import Recording
from rcm_daemon.rehearsal import Rehearsal
from rcm_daemon.vitals import Vitals

if TYPE_CHECKING:
    from collections.abc import Callable

    from rcm_daemon.core.stack import Acquisition
    from rcm_daemon.settings import Settings

log = logging.getLogger("rcm_daemon")

SWITCH_S = 0.0005
"""The journal's thread gives way to the loop after this; by default it would be after 5 ms."""
GIVE_WAY_S = 0.0002
"""After a result the loop stands aside for so long: threads that carry it to its reader, here and there, may
have been put on this core, and would wait there until the account is taken down (decision 21)."""
LOOP_S = 1.0
"""At least this often the loop turns, so that the watchdog is fed and idle stacks are seen."""


class Service:
    """Serves until SIGTERM or SIGINT.

    Parameters
    ----------
    settings
        What to serve.
    reload
        Reads the settings again when SIGHUP comes; raises ConfigurationError where they are faulty.

    Raises
    ------
    ConfigurationError
        On construction: a port in use, or the state folder held or unwritable.
    BundleError
        On construction: the bundle cannot be served; nothing is announced as ready.
    """

    def __init__(self, settings: Settings, reload: Callable[[], Settings] | None = None) -> None:
        self._settings = settings
        self._state_dir = StateDir(settings.state_dir)
        self._wakeup = Wakeup()
        self._heap = Heap()
        self._ledger = Ledger(settings.idle_timeout_s, settings.max_instruments)
        self._inference = Inference(settings.slice_timeout_s)
        # From here on: who is told to stop while loading stops cleanly once loaded.
        self._lifecycle = Lifecycle(self._wakeup, reload)
        with ExitStack() as undo:
            undo.callback(self._state_dir.close)
            undo.callback(self._inference.close_all)
            self._bundles = Bundles(self._inference, settings, self._state_dir)
            self._dormant = Dormant(self._bundles)
            self._rehearsal = Rehearsal(self._bundles, settings.rehearsal_share)
            pseudonyms = Pseudonyms(self._state_dir.salt())
            self._counts = Counts(pseudonyms)
            self._endpoints = Endpoints(settings)
            undo.callback(self._endpoints.abort)
            self._vitals = Vitals(settings, self._endpoints.door)
            undo.callback(self._vitals.close)
            journal = open_journal(settings.state_dir, self._vitals.starting)
            shown = pseudonyms if settings.pseudonymise else None
            results, n_ended_kept = self._endpoints.results, settings.n_ended_kept
            self._publishing = Publishing(results, self._state_dir, n_ended_kept, shown)
            keep_days, max_bytes = settings.journal_keep_days, settings.journal_max_mb * 1_000_000
            writer = JournalWriter(journal, self._wakeup.wake, keep_days, max_bytes)
            with damage_noted(settings.state_dir):
                self._publishing.recall(journal.newest_results(n_ended_kept))
                self._recording = Recording(self._ledger, journal, writer)
            writer.start()
            self._publishing.take_up(restored.stack for restored in self._recording.restored)
            undo.callback(self._recording.close)
            self._await_bundles()
            undo.pop_all()
        account = self._counts, self._ledger, self._inference, self._bundles, self._recording
        rest = self._publishing, self._endpoints.door, self._vitals, self._lifecycle, self._rehearsal
        self._health = Health(*account, *rest)
        control = self._endpoints.control
        self._questions = Questions(control, self._publishing, self._bundles, self._health.fields)

    def run(self) -> None:
        """Serve until told to stop, then finish the slices in hand.

        Raises
        ------
        ConfigurationError
            Slices cannot be connected to.
        """
        sys.setswitchinterval(SWITCH_S)
        self._endpoints.connect_slices()
        self._restore()
        gc.collect()
        gc.freeze()  # what is there now stays, and need not be looked through again and again
        self._vitals.ready()
        log.info("ready", extra=self._health.told_when_ready(self._settings))
        drain_until_s = None
        while True:
            n_waiting = self._inference.n_waiting
            if self._lifecycle.draining and drain_until_s is None:
                self._vitals.stopping()
                drain_until_s = time.monotonic() + self._settings.drain_timeout_s
            if drain_until_s is not None:
                is_done = not n_waiting and self._recording.is_settled
                if is_done or time.monotonic() > drain_until_s:
                    break
            has_room = n_waiting < self._settings.max_slices_waiting and self._recording.has_room
            self._turn(wants_slices=has_room and not self._lifecycle.draining)
        self._close()

    def _turn(self, *, wants_slices: bool) -> None:
        """Wait until there is something to do, and do all of it."""
        endpoints, patience_ms = self._endpoints, self._patience_ms()
        ready = endpoints.poll((self._wakeup, self._inference), patience_ms, wants_slices=wants_slices)
        if not ready and not self._inference.n_waiting:
            self._rehearsal.make_pass()
        endpoints.keep_watch(ready)
        for received in endpoints.receive(ready):
            self._on_frames(received.frames, received.key, received.peer)
        self._advance()
        if self._wakeup.fileno() in ready:
            self._wakeup.clear()
        if self._lifecycle.hung_up:
            self._read_settings_again()
        if endpoints.results.socket in ready:
            endpoints.results.serve_subscriptions()
        if endpoints.control.socket in ready:
            try:
                self._questions.serve()
            except Rejection as rejection:
                self._counts.refuse(rejection)
        self._vitals.beat(
            time.monotonic(), self._inference.n_waiting, self._counts.n_done, self._health.fields
        )
        for stack in self._ledger.expire(time.monotonic()):
            self._recording.note(stack.instrument, [stack])
            self._publish(stack, Latency())
        for reply in self._recording.advance():
            self._endpoints.acknowledge(reply)
        if not self._inference.n_waiting and self._recording.is_settled:
            self._heap.rest(time.monotonic(), self._counts.n_messages)

    # --- start ---

    def _await_bundles(self) -> None:
        """Wait until the bundles of all restored stacks are served, or known not to be."""
        self._bundles.await_active(self._vitals.starting)
        self._ledger.bundle_digest = self._bundles.active_digest
        for digest in {one.stack.bundle_digest for one in self._recording.restored if not one.has_result}:
            self._bundles.await_opened(digest, self._vitals.starting)

    def _restore(self) -> None:
        """Go on with the stacks of the journal."""
        n_open = 0
        for restored in self._recording.restored:
            stack = restored.stack
            n_open += not restored.has_result
            if restored.has_result:
                self._dormant.lay(stack, restored.embedded)
            elif not restored.embedded:
                self._publish(stack, Latency())
            elif (desk := self._bundles.desk_of(stack.bundle_digest)) is None:
                self._abandon(stack)
            else:
                desk.label(stack, [NewSlice(one) for one in restored.embedded], time.monotonic())
        self._recording.restored.clear()
        while self._inference.n_waiting and not self._lifecycle.draining:  # a daemon that is ready knows all
            self._vitals.starting()
            select.select([self._inference], [], [], self._patience_ms() / 1e3)
            self._advance()
        log.info("restored", extra={"n_stacks": n_open, "n_damaged": self._recording.n_damaged})

    # --- messages in ---

    def _on_frames(self, frames: list[Any], key: bytes | None, peer: bytes = b"") -> None:
        """Take in a message of the holder of `key` (None: not locked); `peer` is who is answered, if any."""
        received_ns = time.monotonic_ns()
        self._counts.n_messages += 1
        bound = None
        try:
            bound = self._endpoints.door.instrument_of(key)
            message = parse([frame.buffer for frame in frames])
            check_instrument(message, bound)
        except Rejection as rejection:
            if may_account(bound, rejection.origin.instrument):
                self._report(rejection, self._ledger.refuse(rejection), peer)
            else:
                self._counts.refuse(rejection)
                self._endpoints.acknowledge(Reply.refusal(peer, rejection))
            return
        self._counts.n_slices += isinstance(message, Slice)
        try:
            outcome = self._ledger.accept(message, time.monotonic())
        except Rejection as rejection:
            self._report(rejection, self._ledger.reports(rejection), peer)
            return
        status = "stored" if outcome.status == "accepted" else outcome.status
        reply = Reply.to(peer, message, status) if peer else None
        instrument = origin_of(message).instrument
        stack = outcome.embed
        if stack is not None and isinstance(message, Slice):
            slice_ = (stack, message.header.index)
            desk = self._bundles.desk_of(stack.bundle_digest)
            if desk is not None:  # the worker begins at once, the account is taken down meanwhile
                self._dormant.wake(stack)
                desk.embed(SliceJob(stack, message, received_ns))
                desk.give_next(time.monotonic())
                self._rehearsal.came(frames, received_ns / 1e9)
            self._recording.note(instrument, [*outcome.changed, stack], reply, slice_)
            if desk is None:
                self._abandon(stack)
        else:
            repeats = self._ledger.slice_of(message) if isinstance(message, Slice) else None
            self._recording.note(instrument, outcome.changed, reply, repeats=repeats)
        for changed in outcome.changed:
            self._publish(changed, Latency())

    def _report(self, rejection: Rejection, reporting: Acquisition | None, peer: bytes) -> None:
        """Count, log and write down a refused message, and publish the stack whose results report it."""
        self._counts.refuse(rejection)
        reply = Reply.refusal(peer, rejection) if peer else None
        if self._ledger.instrument(rejection.origin.instrument) is not None:
            self._recording.note(rejection.origin.instrument, [reporting] if reporting else [], reply)
        elif reply is not None:
            self._endpoints.acknowledge(reply)
        if reporting is not None:
            self._publish(reporting, Latency())

    # --- inference ---

    def _advance(self) -> None:
        for desk in list(self._inference.desks):
            while outcomes := desk.advance(time.monotonic()):
                for outcome in outcomes:
                    self._on_outcome(desk, outcome)

    def _on_outcome(self, desk: Desk, outcome: Outcome) -> None:
        self._counts.n_done += isinstance(outcome, Embedded | Labelled | Unusable)
        match outcome:
            case Embedded():
                self._recording.embedded(outcome.stack, outcome.new)
            case Labelled():
                self._on_labelled(outcome)
            case Unusable():
                self._refuse_slice(outcome.stack, outcome.index, outcome.rule, outcome.detail)
                self._dormant.refused(outcome.stack)
                self._publish(outcome.stack, Latency())
            case Opened():
                if (activation := self._bundles.opened(desk, outcome.bundle)) is not None:
                    self._ledger.bundle_digest = self._bundles.active_digest
                    self._questions.activated(activation)
                    self._retire()
            case NotOpened():
                self._on_not_opened(desk, outcome.refused or outcome.reason)

    def _on_labelled(self, outcome: Labelled) -> None:
        stack, partial, before = outcome.stack, outcome.partial, outcome.before
        self._dormant.woken(stack)
        estimation = self._bundles.estimation(stack.bundle_digest)
        try:
            estimate = estimation.estimate(partial, outcome.given, stack.share_seen(len(partial)), before)
        except (InferenceError, ArithmeticError, ValueError) as error:
            for one in outcome.new:
                self._refuse_slice(stack, one.embedded.index, Rule.NOT_LABELLED, str(error))
        else:
            self._ledger.labelled(stack, partial, estimate)
            self._rehearsal.labelled(outcome)
        latency = outcome.new[-1].latency(time.monotonic_ns())
        if latency.total_ms:
            self._vitals.observe(latency)
        self._publish(outcome.stack, latency)
        if not self._inference.n_waiting:
            time.sleep(GIVE_WAY_S)

    def _refuse_slice(self, stack: Acquisition, index: int, rule: Rule, detail: str) -> None:
        """Refuse a slice that had been accepted."""
        rejection = self._ledger.unusable(stack, index, rule, detail)
        self._recording.refused(stack, index, str(rejection))
        self._counts.refuse(rejection)

    def _on_not_opened(self, desk: Desk, complaint: str) -> None:
        stranded = desk.stacks()
        activation = self._bundles.not_opened(desk)
        if activation is not None:
            log.error("bundle refused", extra={"bundle": activation.name, "reason": complaint})
            self._questions.not_activated(activation, complaint)
            return
        log.error("bundle of open stacks cannot be served again", extra={"reason": complaint})
        for stack in stranded:
            self._abandon(stack)

    def _abandon(self, stack: Acquisition) -> None:
        """End a stack whose bundle is gone; what was embedded of it stays in the journal.

        Where it has a result, that stays too, and what came since is refused.
        """
        detail = f"bundle {stack.bundle_digest[:12]}, with which its stack began, is gone"
        log.error("stack abandoned", extra={"instrument": stack.instrument, "reason": detail})
        kept = self._dormant.kept(stack)
        for rejection in self._ledger.abandon(stack, Rule.BUNDLE_GONE, detail, kept):
            self._counts.refuse(rejection)
            self._recording.settle_refused(stack, rejection.origin.index, str(rejection))
        self._recording.note(stack.instrument, [stack])
        self._dormant.lie_down(stack)
        if not kept:
            self._publish(stack, Latency())

    # --- results out ---

    def _publish(self, stack: Acquisition, latency: Latency) -> None:
        """Publish a stack, and write down its final state; one restored after its end is labelled first."""
        if self._dormant.wake(stack):
            return
        n_lost = self._ledger.n_lost(stack.instrument, stack.run_id)
        message = self._publishing.publish(stack, self._bundles.source(stack.bundle_digest), latency, n_lost)
        if message.state != "open":
            self._recording.result(stack, message.to_json())
            self._retire()

    def _retire(self) -> None:
        self._bundles.retire({stack.bundle_digest for stack in self._ledger.open_stacks()})

    # --- signals ---

    def _read_settings_again(self) -> None:
        self._vitals.reloading()
        new = self._settings = self._lifecycle.read_again(self._settings)
        self._ledger.idle_timeout_s = new.idle_timeout_s
        self._ledger.max_instruments = new.max_instruments
        self._publishing.n_ended_kept = new.n_ended_kept
        self._recording.writer.keep_days = new.journal_keep_days
        self._recording.writer.max_bytes = new.journal_max_mb * 1_000_000
        logging.getLogger().setLevel(new.log_level.upper())
        self._vitals.ready()

    def _patience_ms(self) -> int:
        now_s = time.monotonic()
        due = [t for t in (self._ledger.next_expiry_s(), self._inference.next_due_s) if t is not None]
        rehearsal_s = None if self._inference.n_waiting else self._rehearsal.wait_s(now_s)
        waits_s = [LOOP_S, *(t - now_s for t in due), *([] if rehearsal_s is None else [rehearsal_s])]
        return max(0, math.ceil(min(waits_s) * 1e3))

    def _close(self) -> None:
        n_left = self._inference.n_waiting
        self._inference.close_all()
        self._recording.close()
        self._publishing.close()
        self._vitals.close()
        self._endpoints.close()
        self._wakeup.close()
        self._state_dir.close()
        if n_left:
            log.error("slices in hand were not finished in time", extra={"n_waiting": n_left})
            raise SystemExit(1)
        log.info("stopped")
