"""The daemon's loop: slices in, strata out, questions answered; one thread beside the embedding one."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import socket as unix
import time
from collections import Counter, OrderedDict
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import zmq

from rcm_daemon import __version__
from rcm_daemon.bundle.location import resolve_bundle
from rcm_daemon.bundle.sessions import Networks
from rcm_daemon.bundle.verify import load_verified
from rcm_daemon.bundle.worker import EmbedJob, EmbedResult, EmbedWorker
from rcm_daemon.core.admission import check_instrument, may_account
from rcm_daemon.core.control import CONTROL_SCHEMA, GetHealth, GetState, RequestError, parse_request
from rcm_daemon.core.ledger import Ledger
from rcm_daemon.core.message import Latency, Source, StrataMessage, build_message
from rcm_daemon.core.pipeline import take_in
from rcm_daemon.core.pseudonyms import Pseudonyms, pseudonymised
from rcm_daemon.core.records import Slice
from rcm_daemon.core.rejection import Rejection, Rule
from rcm_daemon.core.wire import parse
from rcm_daemon.errors import BundleError, InferenceError
from rcm_daemon.io.curve import CurveServer, peer_key
from rcm_daemon.io.door import Door
from rcm_daemon.io.notify import notify
from rcm_daemon.io.results import ResultsSocket
from rcm_daemon.io.sockets import Context, Socket, bind_control, bind_results, connect_slices, rebind
from rcm_daemon.io.state_dir import StateDir

if TYPE_CHECKING:
    from collections.abc import Iterable

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
        self._pseudonyms = Pseudonyms(self._state_dir.salt())
        self._context: Context = Context()
        self._awake, self._wakeup = unix.socketpair()
        self._awake.setblocking(False)
        self._wakeup.setblocking(False)
        self._n_messages = self._n_slices = self._n_waiting = 0
        self._draining = False
        # From here on: who is told to stop while loading stops cleanly once loaded.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        with ExitStack() as undo:
            undo.callback(self._state_dir.close)
            undo.callback(self._context.destroy, linger=0)
            locked = any(map(settings.is_encrypted, settings.endpoints))
            self._door = Door(self._context, settings.keys_dir, settings.key if locked else None)
            undo.callback(self._door.close)
            self._results = ResultsSocket(self._bind_results(), self._door.allows)
            self._control = bind_control(
                self._context, settings.control_bind, self._lock(settings.control_bind)
            )
            bundle = load_verified(resolve_bundle(settings.bundle))
            if bundle.manifest.kind == "context":
                raise BundleError(
                    f"a daemon labels the newest slice before the one below it is there, bundle "
                    f"{bundle.manifest.name} needs both: label recorded stacks with rcm-daemon replay"
                )
            self._networks = Networks.open(bundle, settings.provider, settings.n_threads)
            self._networks.warm_up()
            undo.pop_all()
        self._worker = EmbedWorker(self._networks, self._wake)
        self._ledger = Ledger(settings.idle_timeout_s, settings.max_instruments)
        self._source = Source(__version__, bundle.manifest.name, bundle.digest, self._networks.provider)
        self._newest: dict[tuple[str, str, int], StrataMessage] = {}
        self._ended: OrderedDict[tuple[str, str, int], StrataMessage] = OrderedDict()
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
        self._watch_refusals(slices)
        notify("READY=1")
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
            if self._draining and drain_until_s is None:
                notify("STOPPING=1")
                drain_until_s = time.monotonic() + self._settings.drain_timeout_s
            if drain_until_s is not None and (not self._n_waiting or time.monotonic() > drain_until_s):
                break
            wants_slices = not self._draining and self._n_waiting < self._settings.max_slices_waiting
            ready = self._poll(slices if wants_slices else {})
            self._door.note_refusals()
            self._door.report_refusals(time.monotonic())
            if self._door.is_alive:
                notify("WATCHDOG=1")
            if self._results.serves_revoked:
                self._renew_results()
            if self._awake.fileno() in ready:
                self._drain_wakeups()
                for result in self._worker.results():
                    self._on_result(result)
            if self._results.socket in ready:
                self._results.serve_subscriptions()
            if self._control in ready:
                self._answer()
            for socket, key in slices.items():
                if socket in ready:
                    self._on_frames(socket.recv_multipart(copy=False), key)
            for stack in self._ledger.expire(time.monotonic()):
                self._publish(stack, Latency())
        self._close(slices)

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
            self._n_waiting += 1
            self._worker.submit(EmbedJob(outcome.embed, message, received_ns))

    def _on_result(self, result: EmbedResult) -> None:
        self._n_waiting -= 1
        job, new = result.job, result.outcome
        before_ns = time.monotonic_ns()
        if isinstance(new, InferenceError):
            self._ledger.unusable(job.stack, job.slice.header.index, Rule.NOT_EMBEDDED, str(new))
            self._rejections[Rule.NOT_EMBEDDED.name] += 1
        else:
            n_rejected = job.stack.n_rejected
            take_in(self._ledger, job.stack, new, self._networks.label)
            self._rejections[Rule.NOT_LABELLED.name] += job.stack.n_rejected - n_rejected
        now_ns = time.monotonic_ns()
        latency = Latency(
            wait_ms=(result.started_ns - job.received_ns) / 1e6,
            embed_ms=(result.finished_ns - result.started_ns) / 1e6,
            label_ms=(now_ns - before_ns) / 1e6,
            total_ms=(now_ns - job.received_ns) / 1e6,
        )
        self._publish(job.stack, latency)

    def _publish(self, stack: Acquisition, latency: Latency) -> None:
        stack.revision += 1
        message = build_message(
            stack,
            self._source,
            latency,
            seq=self._state_dir.next_seq(),
            time_ns=time.time_ns(),
            n_lost=self._ledger.n_lost(stack.instrument, stack.run_id),
        )
        if self._settings.pseudonymise:
            message = pseudonymised(message, self._pseudonyms)
        is_open = message.state == "open"
        self._results.publish(stack.key, message.topic, message.to_json().encode(), keep=is_open)
        self._newest.pop(stack.key, None)
        self._ended.pop(stack.key, None)
        if is_open:
            self._newest[stack.key] = message
        else:
            self._ended[stack.key] = message
            while len(self._ended) > self._settings.n_ended_kept:
                self._ended.popitem(last=False)

    def _report(self, rejection: Rejection, stack: Acquisition | None) -> None:
        """Count and log a refused message, and publish the stack whose results report it, if any."""
        self._rejections[rejection.rule.name] += 1
        self._log_refused(rejection)
        if stack is not None:
            self._publish(stack, Latency())

    def _log_refused(self, rejection: Rejection) -> None:
        origin = rejection.origin
        # Stack ids can hold patients' names, and what was expected and got can quote them.
        stack = self._pseudonyms.of(origin.stack_id) if origin.stack_id else ""
        fields = {"rule": rejection.rule.name.lower(), "number": f"R{rejection.rule.value}"}
        fields |= {"instrument": origin.instrument, "stack": stack, "index": str(origin.index)}
        log.warning("message refused", extra=fields)

    def _answer(self) -> None:
        parts = self._control.recv_multipart(copy=False)
        if not self._door.allows(peer_key(self._control, parts[0])):
            self._rejections[Rule.KEY_REVOKED.name] += 1
            self._log_refused(Rejection(Rule.KEY_REVOKED, "a request of a revoked key"))
            return
        identity, body = parts[0].bytes, [part.bytes for part in parts[1:]]
        # REQ sockets put an empty delimiter first and want it back; DEALER sockets may do without.
        delimiter = [b""] if len(body) > 1 and body[0] == b"" else []
        try:
            if len(body) != 1 + len(delimiter):
                raise RequestError(f"a request is one frame, got {len(body) - len(delimiter)}")
            answer = self._state_of(parse_request(body[-1]))
        except RequestError as error:
            answer = {"htype": "error", "error": str(error)}
        payload = json.dumps(answer, allow_nan=False, separators=(",", ":")).encode()
        try:
            self._control.send_multipart([identity, *delimiter, payload], zmq.DONTWAIT)
        except zmq.ZMQError:
            log.warning("an answer to a control request could not be sent")

    def _state_of(self, request: object) -> dict[str, Any]:
        base = {"schema": CONTROL_SCHEMA}
        if isinstance(request, GetState):
            if request.stack_id:
                known = [*self._ended.values(), *self._newest.values()]
                chosen = [m for m in known if m.stack_id == request.stack_id]
            else:
                chosen = list(self._newest.values())
            stacks = [m.model_dump(by_alias=True) for m in chosen]
            return {"htype": "state", **base, "seq": self._state_dir.seq, "stacks": stacks}
        if isinstance(request, GetHealth):
            return {"htype": "health", **base, **self._health()}
        manifest = self._networks.manifest
        return {"htype": "bundles", **base, "bundles": [f"{manifest.name}@{manifest.version}"]}

    def _health(self) -> dict[str, Any]:
        return {
            "ready": self._door.is_alive,
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
            "n_waiting": self._n_waiting,
            "n_open_stacks": len(self._newest),
            "n_cnn_runs": self._networks.n_cnn_runs,
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

    def _watch_refusals(self, slices: Iterable[Socket]) -> None:
        self._door.watch(self._results.socket, "results")
        self._door.watch(self._control, "control")
        for socket in slices:
            self._door.watch(socket, "slices")

    def _poll(self, slices: Iterable[Socket]) -> set[Any]:
        """Wait for something to do, but not for slices that are not wanted now."""
        poller = zmq.Poller()
        for socket in (self._results.socket, self._control, *self._door.monitors, *slices):
            poller.register(socket, zmq.POLLIN)
        poller.register(self._awake, zmq.POLLIN)
        return {socket for socket, _ in poller.poll(self._patience_ms())}

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

    def _patience_ms(self) -> int:
        expiry_s = self._ledger.next_expiry_s()
        wait_s = LOOP_S if expiry_s is None else min(LOOP_S, expiry_s - time.monotonic())
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
        log.info("stopping", extra={"signal": signal.Signals(number).name, "n_waiting": self._n_waiting})
        self._draining = True
        self._wake()

    def _close(self, slices: Iterable[Socket]) -> None:
        if self._n_waiting:
            log.error("slices in hand were not finished in time", extra={"n_waiting": self._n_waiting})
            os._exit(1)
        self._door.report_refusals(math.inf)
        self._door.close()
        for socket in slices:
            socket.close(linger=0)
        self._worker.close()
        self._results.socket.close()
        self._control.close()
        self._context.term()
        self._awake.close()
        self._wakeup.close()
        self._state_dir.close()
        log.info("stopped")
