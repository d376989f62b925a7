"""The daemon's loop: slices in, strata out, questions answered; networks run in processes of their own."""

from __future__ import annotations

import logging
import math
import select
import signal
import socket as unix
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import zmq

from rcm_daemon import __version__
from rcm_daemon.bundle.launch import Launch
from rcm_daemon.bundle.location import resolve_bundle
from rcm_daemon.core.control import CONTROL_SCHEMA, GetHealth, GetState, Request
from rcm_daemon.core.ledger import Ledger
from rcm_daemon.core.message import Latency, Source
from rcm_daemon.core.pipeline import estimate_from
from rcm_daemon.core.records import Slice
from rcm_daemon.core.rejection import Rejection
from rcm_daemon.core.wire import parse
from rcm_daemon.errors import BundleError
from rcm_daemon.inference import Desk, Inference, Labelled, NotOpened, Opened, Outcome, SliceJob, Unusable
from rcm_daemon.io.control import ControlSocket
from rcm_daemon.io.notify import notify
from rcm_daemon.io.results import ResultsSocket
from rcm_daemon.io.sockets import Context, bind_control, bind_results, connect_slices
from rcm_daemon.io.state_dir import StateDir
from rcm_daemon.publishing import Publishing

if TYPE_CHECKING:
    from rcm_daemon.core.stack import Acquisition
    from rcm_daemon.settings import Settings

log = logging.getLogger("rcm_daemon")

LOOP_S = 1.0
"""At least this often the loop turns, so that the watchdog is fed and idle stacks are seen."""


class Service:
    """Serves until SIGTERM or SIGINT.

    Raises
    ------
    ConfigurationError
        On construction: a port in use, or the state folder held or unwritable.
    BundleError
        On construction: the bundle cannot be served; nothing is announced as ready.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._state_dir = StateDir(settings.state_dir)
        self._context: Context = Context()
        self._awake, self._wakeup = unix.socketpair()
        self._awake.setblocking(False)
        self._wakeup.setblocking(False)
        self._n_messages = self._n_slices = 0
        self._draining = False
        self._inference = Inference(settings.slice_timeout_s)
        # From here on: who is told to stop while loading stops cleanly once loaded.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        try:
            launch = Launch(str(resolve_bundle(settings.bundle)), settings.provider, settings.n_threads)
            desk = self._inference.open(launch, time.monotonic())
            results = ResultsSocket(bind_results(self._context, settings.results_bind))
            self._results = results
            self._control = ControlSocket(bind_control(self._context, settings.control_bind))
            self._await_first(desk)
        except BaseException:
            self._inference.close_all()
            self._context.destroy(linger=0)
            self._state_dir.close()
            raise
        self._ledger = Ledger(settings.idle_timeout_s, settings.max_instruments)
        self._publishing = Publishing(results, self._state_dir, settings.n_ended_kept)
        self._rejections: Counter[str] = Counter()
        self._started_s = time.monotonic()

    def run(self) -> None:
        """Serve until told to stop, then finish the slices in hand.

        Raises
        ------
        ConfigurationError
            Slices cannot be connected to.
        """
        slices = connect_slices(self._context, self._settings.slices_connect, self._settings.slices_socket)
        poller = zmq.Poller()
        poller.register(self._results.socket, zmq.POLLIN)
        poller.register(self._control.socket, zmq.POLLIN)
        poller.register(self._awake, zmq.POLLIN)
        poller.register(self._inference, zmq.POLLIN)
        notify("READY=1")
        log.info(
            "ready: bundle %s %s on %s, results at %s, control at %s",
            self._source.bundle_name,
            self._source.bundle_digest[:12],
            self._source.provider,
            self._settings.results_bind,
            self._settings.control_bind,
        )
        drain_until_s = None
        while True:
            n_waiting = self._inference.n_waiting
            if self._draining and drain_until_s is None:
                notify("STOPPING=1")
                drain_until_s = time.monotonic() + self._settings.drain_timeout_s
            if drain_until_s is not None and (not n_waiting or time.monotonic() > drain_until_s):
                break
            wants_slices = not self._draining and n_waiting < self._settings.max_slices_waiting
            # A socket is polled for nothing, rather than not at all, when it must wait.
            poller.register(slices, zmq.POLLIN if wants_slices else 0)
            ready = dict(poller.poll(self._patience_ms()))
            notify("WATCHDOG=1")
            if self._awake.fileno() in ready:
                self._drain_wakeups()
            if self._results.socket in ready:
                self._results.serve_subscriptions()
            if self._control.socket in ready and (asked := self._control.receive()) is not None:
                self._control.answer(asked[0], self._answer_to(asked[1]))
            if slices in ready:
                self._on_frames(slices.recv_multipart(copy=False))
            for desk in list(self._inference.desks):
                for outcome in desk.advance(time.monotonic()):
                    self._on_outcome(outcome)
            for stack in self._ledger.expire(time.monotonic()):
                self._publish(stack, Latency())
        slices.close(linger=0)
        self._close()

    def _await_first(self, desk: Desk) -> None:
        """Wait until the first worker serves its bundle."""
        while True:
            due_s = desk.next_due_s
            patience_s = LOOP_S if due_s is None else max(0.0, min(LOOP_S, due_s - time.monotonic()))
            select.select([self._inference], [], [], patience_s)
            for outcome in desk.advance(time.monotonic()):
                if isinstance(outcome, NotOpened):
                    raise BundleError(outcome.refused or outcome.reason)
                if isinstance(outcome, Opened):
                    bundle = outcome.bundle
                    self._source = Source(__version__, bundle.name, bundle.digest, bundle.provider)
                    self._desk = desk
                    return

    def _on_frames(self, frames: list[Any]) -> None:
        received_ns = time.monotonic_ns()
        self._n_messages += 1
        try:
            message = parse([frame.buffer for frame in frames])
        except Rejection as rejection:
            self._report(rejection, self._ledger.refuse(rejection))
            return
        self._n_slices += isinstance(message, Slice)
        try:
            outcome = self._ledger.accept(message, time.monotonic())
        except Rejection as rejection:
            self._report(rejection, self._ledger.reports(rejection))
            return
        for stack in outcome.changed:
            self._publish(stack, Latency())
        if outcome.embed is not None and isinstance(message, Slice):
            self._desk.embed(SliceJob(outcome.embed, message, received_ns))

    def _on_outcome(self, outcome: Outcome) -> None:
        if isinstance(outcome, Unusable):
            self._ledger.unusable(outcome.stack, outcome.index, outcome.rule, outcome.detail)
            self._rejections[outcome.rule.name] += 1
            self._publish(outcome.stack, Latency())
        elif isinstance(outcome, Labelled):
            before_ns = time.monotonic_ns()
            estimate = estimate_from(outcome.partial, outcome.probabilities)
            self._ledger.labelled(outcome.stack, outcome.partial, estimate)
            newest, now_ns = outcome.newest, time.monotonic_ns()
            latency = Latency(
                wait_ms=(newest.started_ns - newest.received_ns) / 1e6,
                embed_ms=(newest.finished_ns - newest.started_ns) / 1e6,
                label_ms=(now_ns - newest.finished_ns) / 1e6,
                total_ms=(now_ns - newest.received_ns) / 1e6,
            )
            self._publish(outcome.stack, latency)

    def _publish(self, stack: Acquisition, latency: Latency) -> None:
        n_lost = self._ledger.n_lost(stack.instrument, stack.run_id)
        self._publishing.publish(stack, self._source, latency, n_lost)

    def _report(self, rejection: Rejection, stack: Acquisition | None) -> None:
        """Count and log a refused message, and publish the stack whose results report it, if any."""
        self._rejections[rejection.rule.name] += 1
        # Stack ids can hold patients' names, so the log names the rule and the instrument only.
        who = rejection.origin.instrument or "unknown"
        log.warning("R%d %s: a message of %s", rejection.rule.value, rejection.rule.name.lower(), who)
        if stack is not None:
            self._publish(stack, Latency())

    def _answer_to(self, request: Request) -> dict[str, Any]:
        base = {"schema": CONTROL_SCHEMA}
        if isinstance(request, GetState):
            stacks = [m.model_dump(by_alias=True) for m in self._publishing.newest(request.stack_id)]
            return {"htype": "state", **base, "seq": self._publishing.seq, "stacks": stacks}
        if isinstance(request, GetHealth):
            return {"htype": "health", **base, **self._health()}
        bundle = self._desk.supervisor.bundle
        return {"htype": "bundles", **base, "bundles": [f"{bundle.name}@{bundle.version}"] if bundle else []}

    def _health(self) -> dict[str, Any]:
        return {
            "ready": True,
            "state": "draining" if self._draining else "serving",
            "n_messages": self._n_messages,
            "n_slices": self._n_slices,
            "n_rejected": self._rejections.total(),
            "n_lost": self._ledger.n_lost_now,
            "provider": self._source.provider,
            "bundle_name": self._source.bundle_name,
            "bundle_digest": self._source.bundle_digest,
            "uptime_s": round(time.monotonic() - self._started_s, 3),
            "daemon_version": __version__,
            "n_waiting": self._inference.n_waiting,
            "n_open_stacks": self._publishing.n_open,
            "n_cnn_runs": self._inference.n_embedded,
            "n_worker_restarts": self._inference.n_restarts,
            "worker_pid": self._desk.supervisor.pid,
            "rejected_rule": sorted(k for k, n in self._rejections.items() if n),
            "rejected_count": [self._rejections[k] for k in sorted(self._rejections) if self._rejections[k]],
        }

    def _patience_ms(self) -> int:
        due = [t for t in (self._ledger.next_expiry_s(), self._inference.next_due_s) if t is not None]
        wait_s = min([LOOP_S, *(t - time.monotonic() for t in due)])
        return max(0, math.ceil(wait_s * 1e3))

    def _wake(self) -> None:
        try:
            self._wakeup.send(b"\x00")
        except OSError:
            return  # a full pipe wakes as well; a closed one belongs to a daemon that has stopped

    def _drain_wakeups(self) -> None:
        try:
            while self._awake.recv(4096):
                pass
        except BlockingIOError:
            return

    def _stop(self, number: int, frame: object) -> None:
        del frame
        log.info("%s: finishing the slices in hand", signal.Signals(number).name)
        self._draining = True
        self._wake()

    def _close(self) -> None:
        n_left = self._inference.n_waiting
        self._inference.close_all()
        self._results.socket.close()
        self._control.socket.close()
        self._context.term()
        self._awake.close()
        self._wakeup.close()
        self._state_dir.close()
        if n_left:
            log.error("%d slice(s) in hand were not finished in time", n_left)
            raise SystemExit(1)
        log.info("stopped")
