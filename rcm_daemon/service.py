"""The daemon's loop: slices in, strata out, questions answered; networks run in processes of their own."""

from __future__ import annotations

import logging
import math
import select
import signal
import socket as unix
import time
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import zmq

from rcm_daemon import __version__
from rcm_daemon.bundle.launch import Launch
from rcm_daemon.bundle.location import resolve_bundle
from rcm_daemon.bundle.signature import read_public_key
from rcm_daemon.core.admission import check_instrument, may_account
from rcm_daemon.core.control import CONTROL_SCHEMA, GetHealth, GetState, Request
from rcm_daemon.core.ledger import Ledger
from rcm_daemon.core.message import Latency, Source
from rcm_daemon.core.pipeline import estimate_from
from rcm_daemon.core.pseudonyms import Pseudonyms
from rcm_daemon.core.records import Slice
from rcm_daemon.core.rejection import Rejection
from rcm_daemon.core.wire import parse
from rcm_daemon.errors import BundleError
from rcm_daemon.inference import Desk, Inference, Labelled, NotOpened, Opened, Outcome, SliceJob, Unusable
from rcm_daemon.io.control import ControlSocket
from rcm_daemon.io.door import Door
from rcm_daemon.io.results import ResultsSocket
from rcm_daemon.io.sockets import Context, Socket, bind_control, bind_results, connect_slices, rebind
from rcm_daemon.io.state_dir import StateDir
from rcm_daemon.publishing import Publishing
from rcm_daemon.vitals import Vitals

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rcm_daemon.core.stack import Acquisition
    from rcm_daemon.io.curve import CurveServer
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
        self._n_messages = self._n_slices = self._n_done = 0
        self._draining = False
        self._inference = Inference(settings.slice_timeout_s)
        # From here on: who is told to stop while loading stops cleanly once loaded.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        with ExitStack() as undo:
            undo.callback(self._state_dir.close)
            undo.callback(self._context.destroy, linger=0)
            undo.callback(self._inference.close_all)
            launch = Launch(
                str(resolve_bundle(settings.bundle)),
                settings.provider,
                settings.n_threads,
                public_key=read_public_key(key).hex() if (key := settings.bundle_public_key) else "",
            )
            desk = self._inference.open(launch, time.monotonic())
            self._pseudonyms = Pseudonyms(self._state_dir.salt())
            locked = any(map(settings.is_encrypted, settings.endpoints))
            self._door = Door(self._context, settings.keys_dir, settings.key if locked else None)
            undo.callback(self._door.close)
            self._results = ResultsSocket(self._bind_results(), self._door.allows)
            control = bind_control(self._context, settings.control_bind, self._lock(settings.control_bind))
            self._control = ControlSocket(control, self._door.allows)
            self._vitals = Vitals(settings, self._door)
            undo.callback(self._vitals.close)
            self._await_first(desk)
            undo.pop_all()
        self._ledger = Ledger(settings.idle_timeout_s, settings.max_instruments)
        self._publishing = Publishing(
            self._results,
            self._state_dir,
            settings.n_ended_kept,
            self._pseudonyms if settings.pseudonymise else None,
        )
        self._rejections: Counter[str] = Counter()
        self._started_s = time.monotonic()

    def run(self) -> None:
        """Serve until told to stop, then finish the slices in hand.

        Raises
        ------
        ConfigurationError
            Slices cannot be connected to.
        """
        slices = self._connect_slices()
        self._door.watch(self._results.socket, "results")
        self._door.watch(self._control.socket, "control")
        for socket in slices:
            self._door.watch(socket, "slices")
        self._vitals.ready()
        log.info(
            "ready",
            extra={
                "bundle": self._source.bundle_name,
                "digest": self._source.bundle_digest[:12],
                "provider": self._source.provider,
                "results": self._settings.results_bind,
                "control": self._settings.control_bind,
            },
        )
        drain_until_s = None
        while True:
            n_waiting = self._inference.n_waiting
            if self._draining and drain_until_s is None:
                self._vitals.stopping()
                drain_until_s = time.monotonic() + self._settings.drain_timeout_s
            if drain_until_s is not None and (not n_waiting or time.monotonic() > drain_until_s):
                break
            wants_slices = not self._draining and n_waiting < self._settings.max_slices_waiting
            ready = self._poll(slices if wants_slices else {})
            self._vitals.beat(time.monotonic(), n_waiting, self._n_done, self._health)
            if self._results.serves_revoked:
                self._renew_results()
            if self._awake.fileno() in ready:
                self._drain_wakeups()
            if self._results.socket in ready:
                self._results.serve_subscriptions()
            if self._control.socket in ready:
                self._on_request()
            for socket, key in slices.items():
                if socket in ready:
                    self._on_frames(socket.recv_multipart(copy=False), key)
            for desk in list(self._inference.desks):
                for outcome in desk.advance(time.monotonic()):
                    self._on_outcome(outcome)
            for stack in self._ledger.expire(time.monotonic()):
                self._publish(stack, Latency())
        self._close(slices)

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

    def _on_frames(self, frames: list[Any], key: bytes | None) -> None:
        """Take in one message of the holder of `key` (None: of a socket that is not locked)."""
        received_ns = time.monotonic_ns()
        self._n_messages += 1
        bound = None
        try:
            bound = self._door.instrument_of(key)
            message = parse([frame.buffer for frame in frames])
            check_instrument(message, bound)
        except Rejection as rejection:
            own = may_account(bound, rejection.origin.instrument)
            self._report(rejection, self._ledger.refuse(rejection) if own else None)
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
        self._n_done += not isinstance(outcome, Opened | NotOpened)
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
            self._vitals.observe(latency)
            self._publish(outcome.stack, latency)

    def _publish(self, stack: Acquisition, latency: Latency) -> None:
        n_lost = self._ledger.n_lost(stack.instrument, stack.run_id)
        self._publishing.publish(stack, self._source, latency, n_lost)

    def _report(self, rejection: Rejection, reporting: Acquisition | None) -> None:
        """Count and log a refused message, and publish the stack whose results report it, if any."""
        self._rejections[rejection.rule.name] += 1
        origin = rejection.origin
        # Stack ids can hold patients' names, and what was expected and got can quote them.
        stack = self._pseudonyms.of(origin.stack_id) if origin.stack_id else ""
        fields = {"rule": rejection.rule.name.lower(), "number": f"R{rejection.rule.value}"}
        fields |= {"instrument": origin.instrument, "stack": stack, "index": str(origin.index)}
        log.warning("message refused", extra=fields)
        if reporting is not None:
            self._publish(reporting, Latency())

    def _on_request(self) -> None:
        try:
            asked = self._control.receive()
        except Rejection as rejection:
            self._report(rejection, None)
            return
        if asked is not None:
            self._control.answer(asked[0], self._answer_to(asked[1]))

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
            "ready": self._vitals.is_sound,
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
            "refused_connection": [f"{name}/{reason}" for name, reason in sorted(self._door.refused)],
            "refused_count": [self._door.refused[which] for which in sorted(self._door.refused)],
        }

    def _lock(self, endpoint: str) -> CurveServer | None:
        return self._door.server if self._settings.is_encrypted(endpoint) else None

    def _bind_results(self) -> Socket:
        endpoint = self._settings.results_bind
        return bind_results(self._context, endpoint, self._lock(endpoint))

    def _renew_results(self) -> None:
        """Send all subscribers away because one may not be here any more; the others come again."""
        self._door.leave(self._results.socket)
        self._results.socket.close(linger=0)
        log.warning("results bound anew, the key of a subscriber was revoked")
        self._results.replace_socket(rebind(self._bind_results))
        self._door.watch(self._results.socket, "results")

    def _connect_slices(self) -> dict[Socket, bytes | None]:
        """Connect a socket a controller, with its public key where it is encrypted."""
        sockets: dict[Socket, bytes | None] = {}
        for position, endpoint in enumerate(self._settings.slices_connect):
            curve = None
            if self._settings.is_encrypted(endpoint):
                curve = self._door.client(self._settings.controller_key(position))
            socket = connect_slices(self._context, endpoint, self._settings.slices_socket, curve)
            sockets[socket] = curve.server if curve is not None else None
        return sockets

    def _poll(self, slices: Iterable[Socket]) -> set[Any]:
        """Wait for something to do, but not for slices that are not wanted now."""
        poller = zmq.Poller()
        for socket in (self._results.socket, self._control.socket, *self._door.monitors, *slices):
            poller.register(socket, zmq.POLLIN)
        poller.register(self._awake, zmq.POLLIN)
        poller.register(self._inference, zmq.POLLIN)
        return {socket for socket, _ in poller.poll(self._patience_ms())}

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
        log.info("stopping", extra={"signal": signal.Signals(number).name})
        self._draining = True
        self._wake()

    def _close(self, slices: Iterable[Socket]) -> None:
        n_left = self._inference.n_waiting
        self._inference.close_all()
        self._vitals.close()
        self._door.report_refusals(math.inf)
        self._door.close()
        for socket in slices:
            socket.close(linger=0)
        self._results.socket.close()
        self._control.socket.close()
        self._context.term()
        self._awake.close()
        self._wakeup.close()
        self._state_dir.close()
        if n_left:
            log.error("slices in hand were not finished in time", extra={"n_waiting": n_left})
            raise SystemExit(1)
        log.info("stopped")
