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
from typing import TYPE_CHECKING, Any

import zmq

from rcm_daemon import __version__
from rcm_daemon.bundle.estimator import estimation_of
from rcm_daemon.bundle.location import resolve_bundle
from rcm_daemon.bundle.sessions import Networks
from rcm_daemon.bundle.verify import load_verified
from rcm_daemon.bundle.worker import EmbedJob, EmbedResult, EmbedWorker
from rcm_daemon.core.control import CONTROL_SCHEMA, GetHealth, GetState, RequestError, parse_request
from rcm_daemon.core.ledger import Ledger
from rcm_daemon.core.message import Latency, Source, StrataMessage, build_message
from rcm_daemon.core.pipeline import take_in
from rcm_daemon.core.records import Slice
from rcm_daemon.core.rejection import Rejection, Rule
from rcm_daemon.core.wire import parse
from rcm_daemon.errors import BundleError, InferenceError
from rcm_daemon.io.notify import notify
from rcm_daemon.io.results import ResultsSocket
from rcm_daemon.io.sockets import Context, bind_control, bind_results, connect_slices
from rcm_daemon.io.state_dir import StateDir

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
        self._n_messages = self._n_slices = self._n_waiting = 0
        self._draining = False
        # From here on: who is told to stop while loading stops cleanly once loaded.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        try:
            self._results = ResultsSocket(bind_results(self._context, settings.results_bind))
            self._control = bind_control(self._context, settings.control_bind)
            bundle = load_verified(resolve_bundle(settings.bundle))
            if bundle.manifest.kind == "context":
                raise BundleError(
                    f"a daemon labels the newest slice before the one below it is there, bundle "
                    f"{bundle.manifest.name} needs both: label recorded stacks with rcm-daemon replay"
                )
            self._networks = Networks.open(bundle, settings.provider, settings.n_threads)
            self._networks.warm_up()
        except BaseException:
            self._context.destroy(linger=0)
            self._state_dir.close()
            raise
        self._estimation = estimation_of(self._networks, settings.estimator, settings.mosaic)
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
        slices = connect_slices(self._context, self._settings.slices_connect, self._settings.slices_socket)
        poller = zmq.Poller()
        poller.register(self._results.socket, zmq.POLLIN)
        poller.register(self._control, zmq.POLLIN)
        poller.register(self._awake, zmq.POLLIN)
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
            if self._draining and drain_until_s is None:
                notify("STOPPING=1")
                drain_until_s = time.monotonic() + self._settings.drain_timeout_s
            if drain_until_s is not None and (not self._n_waiting or time.monotonic() > drain_until_s):
                break
            wants_slices = not self._draining and self._n_waiting < self._settings.max_slices_waiting
            # A socket is polled for nothing, rather than not at all, when it must wait.
            poller.register(slices, zmq.POLLIN if wants_slices else 0)
            ready = dict(poller.poll(self._patience_ms()))
            notify("WATCHDOG=1")
            if self._awake.fileno() in ready:
                self._drain_wakeups()
                for result in self._worker.results():
                    self._on_result(result)
            if self._results.socket in ready:
                self._results.serve_subscriptions()
            if self._control in ready:
                self._answer()
            if slices in ready:
                self._on_frames(slices.recv_multipart(copy=False))
            for stack in self._ledger.expire(time.monotonic()):
                self._publish(stack, Latency())
        self._close(slices)

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
            take_in(self._ledger, job.stack, new, self._networks.recur, self._estimation)
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
        # Stack ids can hold patients' names, so the log names the rule and the instrument only.
        who = rejection.origin.instrument or "unknown"
        log.warning("R%d %s: a message of %s", rejection.rule.value, rejection.rule.name.lower(), who)
        if stack is not None:
            self._publish(stack, Latency())

    def _answer(self) -> None:
        frames = self._control.recv_multipart()
        identity, body = frames[0], frames[1:]
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
            "n_waiting": self._n_waiting,
            "n_open_stacks": len(self._newest),
            "n_cnn_runs": self._networks.n_cnn_runs,
            "rejected_rule": sorted(k for k, n in self._rejections.items() if n),
            "rejected_count": [self._rejections[k] for k in sorted(self._rejections) if self._rejections[k]],
        }

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
        log.info("%s: finishing %d slice(s) in hand", signal.Signals(number).name, self._n_waiting)
        self._draining = True
        self._wake()

    def _close(self, slices: zmq.Socket[bytes]) -> None:
        if self._n_waiting:
            log.error("%d slice(s) in hand were not finished in time", self._n_waiting)
            os._exit(1)
        slices.close(linger=0)
        self._worker.close()
        self._results.socket.close()
        self._control.close()
        self._context.term()
        self._awake.close()
        self._wakeup.close()
        self._state_dir.close()
        log.info("stopped")
