"""Processes that answer slices over the daemon's own kind of sockets, without being the daemon."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

import zmq

from rcm_daemon.bench.stream import PATIENCE_MS
from rcm_daemon.core.controller import Controller
from rcm_daemon.errors import RcmError
from rcm_daemon.io.sockets import Context, Socket, bind, connect_slices
from rcm_daemon.local_daemon import free_endpoint
from rcm_daemon.simulator.publisher import Publisher
from rcm_daemon.watch import subscribe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rcm_daemon.bench.stream import Pictures

TOPIC = b"strata.bench"
POLL_MS = 500
"""So often it is looked whether the process still lives."""


class AnsweringProcess:
    """A process that is sent slices one by one, and answers each; a context manager.

    Parameters
    ----------
    context
        Of the publisher's socket.
    pictures
        What is sent.
    name
        What its times are called.
    module, arguments
        What is run: `python -m module <slices> <results> *arguments`, which answers through `sockets`.

    Attributes
    ----------
    answer
        The last one.
    missed
        Indices of the stack's slices that it has not been sent.
    """

    def __init__(
        self, context: Context, pictures: Pictures, name: str, module: str, arguments: Sequence[str] = ()
    ) -> None:
        slices, results = free_endpoint(), free_endpoint()
        self.name = name
        self.answer = b""
        self._pictures = pictures
        self._controller = Controller("bench", "bench")
        self.begin("first")
        command = [sys.executable, "-m", module, slices, results, *arguments]
        self._process = subprocess.Popen(command)  # noqa: S603
        self._publisher = Publisher(context, slices)
        self._results = subscribe(results, TOPIC.decode())

    def __enter__(self) -> AnsweringProcess:
        try:
            self._wait_for(
                lambda: self._publisher.wait_for_subscriber(POLL_MS / 1e3), "its process must connect"
            )
            self.run(0)  # what is said on connecting, and the first message, are no measure
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.wait()
        self._publisher.__exit__(*exc)
        self._results.close(linger=0)

    def begin(self, stack_id: str) -> None:
        """Begin another stack."""
        self._plan = self._pictures.plan(stack_id)
        self.missed = set(range(len(self._plan.z_um)))

    def catch_up(self) -> None:
        """Send what it has not had of the stack, so that `answer` is of all of it."""
        for index in sorted(self.missed):
            self.run(index)

    def run(self, index: int) -> float:
        """Send slice `index` and wait for the answer, which `answer` is then; milliseconds."""
        self.missed.discard(index)
        message = self._controller.slice(self._plan, index, self._pictures.image(index), time.time_ns())
        begun_ns = time.monotonic_ns()
        self._publisher.send(message)
        self._wait_for(lambda: bool(self._results.poll(POLL_MS)), "an answer must come")
        self.answer = self._results.recv_multipart()[1]
        return (time.monotonic_ns() - begun_ns) / 1e6

    def _wait_for(self, came: Callable[[], bool], wanted: str) -> None:
        """Ask until it came; raise when the process has ended, or after `PATIENCE_MS`."""
        for _ in range(PATIENCE_MS // POLL_MS):
            if came():
                return
            if (code := self._process.poll()) is not None:
                raise RcmError(f"{self.name} was not measured: its process ended with exit code {code}")
        raise RcmError(f"{self.name}: {wanted} within {PATIENCE_MS / 1e3:g} s, it did not")


def sockets(slices: str, results: str) -> tuple[Socket, Socket]:
    """Open, in the process that answers, where slices come from and where answers go; they are awaited."""
    context = Context()
    subscriber, publisher = connect_slices(context, slices, "sub"), context.socket(zmq.XPUB)
    bind(publisher, results, "answers")
    publisher.recv()  # the one who measures is there
    return subscriber, publisher
