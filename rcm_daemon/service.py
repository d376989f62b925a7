"""The daemon's loop: slices in, strata out, questions answered; networks run in processes of their own."""

from __future__ import annotations

import logging
import math
import select
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import zmq

from rcm_daemon import __version__
from rcm_daemon.bundles import Bundles
from rcm_daemon.core.acknowledgement import Reply
from rcm_daemon.core.control import CONTROL_SCHEMA, ActivateBundle, GetHealth, GetState, Request
from rcm_daemon.core.ledger import Ledger
from rcm_daemon.core.message import Latency
from rcm_daemon.core.pipeline import estimate_from
from rcm_daemon.core.records import Slice
from rcm_daemon.core.rejection import Rejection, Rule
from rcm_daemon.core.wire import parse
from rcm_daemon.errors import BundleError
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
from rcm_daemon.io.control import Asker, ControlSocket
from rcm_daemon.io.ingest import IngestSocket
from rcm_daemon.io.journal_salvage import open_journal
from rcm_daemon.io.notify import notify
from rcm_daemon.io.results import ResultsSocket
from rcm_daemon.io.sockets import Context, bind_control, bind_ingest, bind_results, connect_slices
from rcm_daemon.io.state_dir import StateDir
from rcm_daemon.io.wakeup import Wakeup
from rcm_daemon.lifecycle import Lifecycle
from rcm_daemon.publishing import Publishing
from rcm_daemon.recording import Recording

if TYPE_CHECKING:
    from collections.abc import Callable

    from rcm_daemon.core.stack import Acquisition, EmbeddedSlice
    from rcm_daemon.settings import Settings

log = logging.getLogger("rcm_daemon")

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
        self._context: Context = Context()
        self._wakeup = Wakeup()
        self._n_messages = self._n_slices = 0
        self._rejections: Counter[str] = Counter()
        self._started_s = time.monotonic()
        self._ledger = Ledger(settings.idle_timeout_s, settings.max_instruments)
        self._inference = Inference(settings.slice_timeout_s)
        # From here on: who is told to stop while loading stops cleanly once loaded.
        self._lifecycle = Lifecycle(self._wakeup, reload)
        try:
            self._bundles = Bundles(self._inference, settings, self._state_dir)
            self._results = ResultsSocket(bind_results(self._context, settings.results_bind))
            self._control = ControlSocket(bind_control(self._context, settings.control_bind))
            self._ingest = None
            if settings.ingest_bind:
                socket = bind_ingest(self._context, settings.ingest_bind)
                self._ingest = IngestSocket(socket, settings.ingest_credit)
            journal = open_journal(settings.state_dir)
            self._publishing = Publishing(self._results, self._state_dir, settings.n_ended_kept)
            self._publishing.recall(journal.newest_results(settings.n_ended_kept))
            keep_days, max_bytes = settings.journal_keep_days, settings.journal_max_mb * 1_000_000
            self._recording = Recording(self._ledger, journal, self._wakeup.wake, keep_days, max_bytes)
            self._dormant: dict[int, list[EmbeddedSlice]] = {}
            self._await_bundles()
        except BaseException:
            self._inference.close_all()
            if hasattr(self, "_recording"):
                self._recording.close(())
            self._context.destroy(linger=0)
            self._state_dir.close()
            raise

    def run(self) -> None:
        """Serve until told to stop, then finish the slices in hand.

        Raises
        ------
        ConfigurationError
            Slices cannot be connected to.
        """
        slices = connect_slices(self._context, self._settings.slices_connect, self._settings.slices_socket)
        self._restore()
        poller = zmq.Poller()
        for source in (self._results.socket, self._control.socket, self._wakeup, self._inference):
            poller.register(source, zmq.POLLIN)
        notify("READY=1")
        bundle = self._bundles.active_source
        log.info(
            "ready: bundle %s %s on %s, results at %s, control at %s",
            bundle.bundle_name,
            bundle.bundle_digest[:12],
            bundle.provider,
            self._settings.results_bind,
            self._settings.control_bind,
        )
        drain_until_s = None
        while True:
            n_waiting = self._inference.n_waiting
            if self._lifecycle.draining and drain_until_s is None:
                notify("STOPPING=1")
                drain_until_s = time.monotonic() + self._settings.drain_timeout_s
            if drain_until_s is not None:
                is_done = not n_waiting and self._recording.is_settled
                if is_done or time.monotonic() > drain_until_s:
                    break
            wants_slices = (
                not self._lifecycle.draining
                and n_waiting < self._settings.max_slices_waiting
                and self._recording.has_room
            )
            # A socket is polled for nothing, rather than not at all, when it must wait.
            poller.register(slices, zmq.POLLIN if wants_slices else 0)
            if self._ingest is not None:
                poller.register(self._ingest.socket, zmq.POLLIN if wants_slices else 0)
            ready = dict(poller.poll(self._patience_ms()))
            notify("WATCHDOG=1")
            if self._wakeup.fileno() in ready:
                self._wakeup.clear()
            if self._lifecycle.hung_up:
                self._read_settings_again()
            if self._results.socket in ready:
                self._results.serve_subscriptions()
            if self._control.socket in ready and (asked := self._control.receive()) is not None:
                self._answer(*asked)
            if slices in ready:
                self._on_frames(slices.recv_multipart(copy=False))
            if self._ingest is not None and self._ingest.socket in ready:
                received = self._ingest.receive()
                self._on_frames(received.frames, received.peer)
            for desk in list(self._inference.desks):
                for outcome in desk.advance(time.monotonic()):
                    self._on_outcome(desk, outcome)
            for stack in self._ledger.expire(time.monotonic()):
                self._recording.note(stack.instrument, [stack])
                self._publish(stack, Latency())
            for reply in self._recording.advance():
                self._acknowledge(reply)
        slices.close(linger=0)
        self._close()

    # --- start ---

    def _await_bundles(self) -> None:
        """Wait until the bundles of all restored stacks are served, or known not to be."""
        self._await_opened(self._bundles.active)
        self._ledger.bundle_digest = self._bundles.active_digest
        for restored in self._recording.restored:
            if not restored.has_result:
                desk = self._bundles.desk_of(restored.stack.bundle_digest)
                if desk is not None and desk.supervisor.bundle is None:
                    self._await_opened(desk)

    def _await_opened(self, desk: Desk) -> None:
        is_active = desk is self._bundles.active
        while True:
            due_s = desk.next_due_s
            patience_s = LOOP_S if due_s is None else max(0.0, min(LOOP_S, due_s - time.monotonic()))
            select.select([self._inference], [], [], patience_s)
            for outcome in desk.advance(time.monotonic()):
                if isinstance(outcome, Opened):
                    self._bundles.opened(desk, outcome.bundle)
                    return
                if isinstance(outcome, NotOpened):
                    self._bundles.not_opened(desk)
                    complaint = outcome.refused or outcome.reason
                    if not is_active:
                        log.error("a bundle that open stacks began with cannot be served: %s", complaint)
                        return
                    if not self._bundles.fall_back():
                        raise BundleError(complaint)
                    log.error("the bundle that was activated last cannot be served: %s", complaint)
                    desk = self._bundles.active

    def _restore(self) -> None:
        """Go on with the stacks of the journal."""
        for restored in self._recording.restored:
            stack = restored.stack
            if restored.has_result:
                self._dormant[stack.number] = restored.embedded
            elif restored.embedded:
                self._label_again(stack, restored.embedded)
            else:
                self._publish(stack, Latency())
        n_open = sum(not restored.has_result for restored in self._recording.restored)
        self._recording.restored.clear()
        if n_open:
            log.info("%d stack(s) of before go on", n_open)

    def _label_again(self, stack: Acquisition, embedded: list[EmbeddedSlice]) -> None:
        desk = self._bundles.desk_of(stack.bundle_digest)
        if desk is None:
            self._abandon(stack)
        else:
            desk.label(stack, [NewSlice(one) for one in embedded], time.monotonic())

    def _abandon(self, stack: Acquisition) -> None:
        """End a stack whose bundle is gone."""
        detail = f"bundle {stack.bundle_digest[:12]}, with which its stack began, is gone"
        for index in self._ledger.abandon(stack, Rule.BUNDLE_GONE, detail):
            self._rejections[Rule.BUNDLE_GONE.name] += 1
            self._recording.settle_refused(stack, index, detail)
        log.error("a stack of %s is abandoned: %s", stack.instrument, detail)
        self._recording.note(stack.instrument, [stack])
        self._publish(stack, Latency())

    # --- messages in ---

    def _on_frames(self, frames: list[Any], peer: bytes = b"") -> None:
        """Account for one message; `peer` is who is to be answered, where there is one."""
        received_ns = time.monotonic_ns()
        self._n_messages += 1
        try:
            message = parse([frame.buffer for frame in frames])
        except Rejection as rejection:
            self._report(rejection, self._ledger.refuse(rejection), peer)
            return
        is_slice = isinstance(message, Slice)
        self._n_slices += is_slice
        try:
            outcome = self._ledger.accept(message, time.monotonic())
        except Rejection as rejection:
            self._report(rejection, self._ledger.reports(rejection), peer)
            return
        instrument = message.header.instrument if isinstance(message, Slice) else message.instrument
        status = "stored" if outcome.status == "accepted" else outcome.status
        reply = Reply.to(peer, message, status) if peer else None
        stack = outcome.embed
        if stack is None or not isinstance(message, Slice):
            self._recording.note(instrument, outcome.changed, reply)
        else:
            index = message.header.index
            self._recording.note(instrument, [*outcome.changed, stack], reply, (stack, index))
            desk = self._bundles.desk_of(stack.bundle_digest)
            if desk is not None:
                self._wake_up(stack)
                desk.embed(SliceJob(stack, message, received_ns))
            else:
                self._abandon(stack)
        for changed in outcome.changed:
            self._publish(changed, Latency())

    def _report(self, rejection: Rejection, stack: Acquisition | None, peer: bytes) -> None:
        """Count, log and write down a refused message, and publish the stack whose results report it."""
        self._rejections[rejection.rule.name] += 1
        # Stack ids can hold patients' names, so the log names the rule and the instrument only.
        instrument = rejection.origin.instrument
        rule = rejection.rule
        log.warning("R%d %s: a message of %s", rule.value, rule.name.lower(), instrument or "unknown")
        reply = Reply.refusal(peer, rejection) if peer else None
        if self._ledger.instrument(instrument) is not None:
            self._recording.note(instrument, [stack] if stack is not None else [], reply)
        elif reply is not None:
            self._acknowledge(reply)
        if stack is not None:
            self._publish(stack, Latency())

    def _acknowledge(self, reply: Reply) -> None:
        if self._ingest is not None:
            self._ingest.answer(reply)

    # --- inference ---

    def _on_outcome(self, desk: Desk, outcome: Outcome) -> None:
        match outcome:
            case Embedded():
                self._recording.embedded(outcome.stack, outcome.new)
            case Unusable():
                self._ledger.unusable(outcome.stack, outcome.index, outcome.rule, outcome.detail)
                self._rejections[outcome.rule.name] += 1
                self._recording.refused(outcome.stack, outcome.index, outcome.detail)
                self._publish(outcome.stack, Latency())
            case Labelled():
                self._on_labelled(outcome)
            case Opened():
                activation = self._bundles.opened(desk, outcome.bundle)
                if activation is not None:
                    self._ledger.bundle_digest = self._bundles.active_digest
                    name, digest = activation.candidate.name, outcome.bundle.digest
                    fields = {"schema": CONTROL_SCHEMA, "bundle": name, "bundle_digest": digest}
                    self._control.answer(activation.asker, {"htype": "activated", **fields})
                    self._retire()
            case NotOpened():
                self._on_not_opened(desk, outcome)

    def _on_labelled(self, outcome: Labelled) -> None:
        estimate = estimate_from(outcome.partial, outcome.probabilities)
        self._ledger.labelled(outcome.stack, outcome.partial, estimate)
        newest, now_ns = outcome.newest, time.monotonic_ns()
        latency = Latency()
        if newest.received_ns:
            latency = Latency(
                wait_ms=(newest.started_ns - newest.received_ns) / 1e6,
                embed_ms=(newest.finished_ns - newest.started_ns) / 1e6,
                label_ms=(now_ns - newest.finished_ns) / 1e6,
                total_ms=(now_ns - newest.received_ns) / 1e6,
            )
        self._publish(outcome.stack, latency)

    def _on_not_opened(self, desk: Desk, outcome: NotOpened) -> None:
        complaint = outcome.refused or outcome.reason
        digests = self._bundles.digests(desk)
        stranded = desk.stacks()
        activation = self._bundles.not_opened(desk)
        if activation is not None:
            log.error("bundle %s is refused, the old one goes on: %s", activation.candidate.name, complaint)
            self._control.refuse(activation.asker, complaint)
            return
        log.error("bundle %s cannot be served again: %s", ", ".join(d[:12] for d in digests), complaint)
        for stack in stranded:
            self._abandon(stack)

    # --- results out ---

    def _publish(self, stack: Acquisition, latency: Latency) -> None:
        """Publish a stack, and write down its final state; one restored after its end is labelled first."""
        if self._wake_up(stack):
            return
        source = self._bundles.source(stack.bundle_digest)
        n_lost = self._ledger.n_lost(stack.instrument, stack.run_id)
        message = self._publishing.publish(stack, source, latency, n_lost)
        if message.state != "open":
            self._recording.result(stack, message.to_json())
            self._retire()

    def _wake_up(self, stack: Acquisition) -> bool:
        """Have a stack labelled that ended before the restart; whether its message follows from that."""
        embedded = self._dormant.pop(stack.number, None)
        if not embedded:
            return False
        self._label_again(stack, embedded)
        return True

    def _retire(self) -> None:
        self._bundles.retire({stack.bundle_digest for stack in self._ledger.open_stacks()})

    # --- control ---

    def _answer(self, asker: Asker, request: Request) -> None:
        base = {"schema": CONTROL_SCHEMA}
        if isinstance(request, GetState):
            stacks = [m.model_dump(by_alias=True) for m in self._publishing.newest(request.stack_id)]
            self._control.answer(
                asker, {"htype": "state", **base, "seq": self._publishing.seq, "stacks": stacks}
            )
        elif isinstance(request, GetHealth):
            self._control.answer(asker, {"htype": "health", **base, **self._health()})
        elif isinstance(request, ActivateBundle):
            try:
                self._bundles.begin_activation(request.bundle, asker)
            except BundleError as error:
                self._control.refuse(asker, str(error))
        else:
            active = self._bundles.active.supervisor.bundle
            name = f"{active.name}@{active.version}" if active is not None else ""
            fields = {"bundles": self._bundles.names(), "active": name}
            self._control.answer(asker, {"htype": "bundles", **base, **fields})

    def _health(self) -> dict[str, Any]:
        source = self._bundles.active_source
        fault = self._recording.writer.fault
        return {
            "ready": not fault,
            "state": "draining" if self._lifecycle.draining else "not recording" if fault else "serving",
            "n_messages": self._n_messages,
            "n_slices": self._n_slices,
            "n_rejected": self._rejections.total(),
            "n_lost": self._ledger.n_lost_now,
            "provider": source.provider,
            "bundle_name": source.bundle_name,
            "bundle_digest": source.bundle_digest,
            "uptime_s": round(time.monotonic() - self._started_s, 3),
            "daemon_version": __version__,
            "n_waiting": self._inference.n_waiting,
            "n_open_stacks": self._publishing.n_open,
            "n_cnn_runs": self._inference.n_embedded,
            "n_worker_restarts": self._inference.n_restarts,
            "worker_pid": self._bundles.active.supervisor.pid,
            "journal_fault": fault,
            "n_unwritten": self._recording.n_unwritten,
            "n_damaged": self._recording.n_damaged,
            "configuration_fault": self._lifecycle.fault,
            "rejected_rule": sorted(k for k, n in self._rejections.items() if n),
            "rejected_count": [self._rejections[k] for k in sorted(self._rejections) if self._rejections[k]],
        }

    def _read_settings_again(self) -> None:
        new = self._settings = self._lifecycle.read_again(self._settings)
        self._ledger.idle_timeout_s = new.idle_timeout_s
        self._ledger.max_instruments = new.max_instruments
        self._publishing.n_ended_kept = new.n_ended_kept
        self._recording.writer.keep_days = new.journal_keep_days
        self._recording.writer.max_bytes = new.journal_max_mb * 1_000_000
        logging.getLogger().setLevel(new.log_level.upper())

    def _patience_ms(self) -> int:
        due = [t for t in (self._ledger.next_expiry_s(), self._inference.next_due_s) if t is not None]
        wait_s = min([LOOP_S, *(t - time.monotonic() for t in due)])
        return max(0, math.ceil(wait_s * 1e3))

    def _close(self) -> None:
        n_left = self._inference.n_waiting
        self._inference.close_all()
        self._recording.close(self._ledger.open_stacks())
        self._results.socket.close()
        self._control.socket.close()
        if self._ingest is not None:
            self._ingest.socket.close()
        self._context.term()
        self._wakeup.close()
        self._state_dir.close()
        if n_left:
            log.error("%d slice(s) in hand were not finished in time", n_left)
            raise SystemExit(1)
        log.info("stopped")
