"""Keeps one worker process for one bundle: hands it a request at a time, replaces it when it fails."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rcm_daemon.bundle.channel import (
    MAX_MESSAGE_BYTES,
    BundleInfo,
    SharedMemory,
    decode,
    encode,
    socket_pair,
)

if TYPE_CHECKING:
    import select
    import socket
    from collections.abc import Sequence

    from rcm_daemon.bundle.launch import Launch

log = logging.getLogger("rcm_daemon")

START_DEADLINE_S = 120.0
"""A worker that has not opened its networks by then never will."""
TENSORRT_START_DEADLINE_S = 1200.0
"""The same where TensorRT builds engines, minutes for each variant; they are kept once they are built."""
REAP_S = 1.0
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 10.0
"""Pause before a worker that could not even start is started again; doubles from the first to this."""

# -P: what lies in the working directory is not imported.
COMMAND = (sys.executable, "-P", "-m", "rcm_daemon.bundle.worker")


@dataclass(frozen=True)
class Ready:
    """A worker has opened the networks and takes requests."""

    bundle: BundleInfo


@dataclass(frozen=True)
class Answer:
    """What came back for the request in hand."""

    fields: dict[str, Any]
    payload: bytes


@dataclass(frozen=True)
class Died:
    """The worker is gone, and with it the request in hand, if there was one.

    `refused` is the worker's own sentence where it could not open the bundle, else empty.
    """

    reason: str
    had_request: bool
    refused: str = ""


Event = Ready | Answer | Died


class Supervisor:
    """One bundle's worker, generation after generation, each on a channel of its own.

    Parameters
    ----------
    launch
        What to open; later generations must find the bundle that the first one found.
    deadline_s
        A request not answered by then ends its worker.
    interest
        Every generation's channel is registered here while it lives.
    command
        Starts a worker; its arguments are appended.
    """

    def __init__(
        self,
        launch: Launch,
        deadline_s: float,
        interest: select.epoll,
        now_s: float,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._launch = launch
        self._deadline_s = deadline_s
        self._interest = interest
        self._command = command
        self._memory = SharedMemory()
        self._channel: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._dying: list[subprocess.Popen[bytes]] = []
        self._due_s: float | None = None  # when the present request, start or pause must be over
        self._pause_s = FIRST_PAUSE_S
        self.bundle: BundleInfo | None = None
        self.is_ready = False
        self.in_hand = False
        self.n_starts = 0
        try:
            self._start(now_s)
        except OSError:
            self._memory.close()
            raise

    @property
    def pid(self) -> int:
        """Process id of the present worker, 0 between two."""
        return self._process.pid if self._process is not None else 0

    @property
    def due_s(self) -> float | None:
        """When `advance` must be called at the latest (monotonic)."""
        return self._due_s

    @property
    def is_free(self) -> bool:
        """Whether a request can be made now."""
        return self.is_ready and not self.in_hand

    @property
    def memory(self) -> SharedMemory:
        """Where a request's bytes are put before it is made."""
        return self._memory

    def request(self, fields: dict[str, Any], now_s: float) -> None:
        """Ask the free worker for one thing, whose bytes are in `memory`."""
        assert self.is_free  # noqa: S101
        self.in_hand = True
        self._due_s = now_s + self._deadline_s
        self._send(fields)

    def follow_up(self, fields: dict[str, Any]) -> None:
        """Send the second half of the request in hand; the worker takes it when it is through the first."""
        self._send(fields)

    def _send(self, fields: dict[str, Any]) -> None:
        assert self._channel is not None  # noqa: S101
        with contextlib.suppress(OSError):  # a worker that just died is seen by `advance`
            self._channel.send(encode(fields))

    def advance(self, now_s: float) -> list[Event]:
        """Read what came, end what is overdue, start what is due; never waits."""
        self._reap()
        events: list[Event] = []
        while (event := self._read(now_s)) is not None:
            events.append(event)
        if self._due_s is not None and now_s >= self._due_s and self._channel is not None:
            allowed_s = self._deadline_s if self.is_ready else self._start_deadline_s
            events.append(self._end(f"did not answer within {allowed_s:g} s", now_s))
        if self._due_s is not None and now_s >= self._due_s and self._channel is None:
            try:
                self._start(now_s)
            except OSError as error:
                log.error("a worker cannot be started: %s", error.strerror)
                self._pause(now_s)
        return events

    def close(self) -> None:
        """End the worker, whatever it does."""
        self._end_process()
        for process in self._dying:
            with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in a driver: the kernel's business
                process.wait(REAP_S)
        self._memory.close()

    def _start(self, now_s: float) -> None:
        ours, theirs = socket_pair()
        reader = self._memory.reader()
        command = [*self._command, self._launch.to_argument()]
        command += [str(theirs.fileno()), str(reader), str(os.getpid())]
        try:
            self._process = subprocess.Popen(  # noqa: S603
                command, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(), reader)
            )
        finally:
            theirs.close()
            os.close(reader)
        self._channel = ours
        self._interest.register(ours.fileno(), 1)  # EPOLLIN
        self.n_starts += 1
        self._due_s = now_s + self._start_deadline_s

    @property
    def _start_deadline_s(self) -> float:
        return TENSORRT_START_DEADLINE_S if self._launch.provider == "tensorrt" else START_DEADLINE_S

    def _read(self, now_s: float) -> Event | None:
        if self._channel is None:
            return None
        try:
            message = self._channel.recv(MAX_MESSAGE_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            message = b""
        if not message:
            return self._end("died", now_s)
        try:
            fields, payload = decode(message)
        except ValueError:
            return self._end("answered nonsense", now_s)
        if fields["kind"] == "refused":
            return self._end("refused its bundle", now_s, fields["error"])
        self._due_s = None
        if fields["kind"] == "ready":
            del fields["kind"]
            found = BundleInfo(**fields)
            if self.bundle is not None and found.provider != self.bundle.provider:
                change = f"{self.bundle.provider} to {found.provider}"
                log.warning("a new worker has changed from %s: %s", change, found.reason)
            self.bundle = replace(found, reason=self.bundle.reason) if self.bundle is not None else found
            # Golden vectors are a matter of the first start; a later one is to be quick.
            # What was chosen stays chosen: embeddings of two variants must not meet in one stack.
            digest, variant, n_threads = self.bundle.digest, self.bundle.variant, self.bundle.n_threads
            self._launch = replace(
                self._launch, digest=digest, variant=variant, n_threads=n_threads, checked=False
            )
            self.is_ready = True
            self._pause_s = FIRST_PAUSE_S
            return Ready(self.bundle)
        self.in_hand = False
        return Answer(fields, payload)

    def _end(self, what: str, now_s: float, refused: str = "") -> Died:
        was_ready, had_request = self.is_ready, self.in_hand
        self._end_process()
        if was_ready:
            self._due_s = now_s
        else:
            self._pause(now_s)
        reason = f"the worker {what}"
        return Died(f"{reason}: {refused}" if refused else reason, had_request, refused)

    def _pause(self, now_s: float) -> None:
        self._due_s = now_s + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def _reap(self) -> None:
        for process in list(self._dying):
            if (code := process.poll()) is not None:
                self._dying.remove(process)
                if code not in (0, -signal.SIGKILL):
                    log.error("a worker ended with exit code %d", code)

    def _end_process(self) -> None:
        """Kill, and reap later: a process stuck in a driver must not hold up the daemon."""
        if self._channel is not None:
            self._interest.unregister(self._channel.fileno())
            self._channel.close()
        if self._process is not None:
            self._process.kill()
            self._dying.append(self._process)
        self._channel = self._process = None
        self.is_ready = self.in_hand = False
        self._due_s = None
