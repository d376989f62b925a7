"""The transport alone: a slice over TCP to a process that does nothing but answer, and its answer back.

Run as `python -m rcm_daemon.bench.echo <slices> <results>`, this is that process.
"""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

import zmq

from rcm_daemon.bench.measured import TRANSPORT
from rcm_daemon.bench.stream import PATIENCE_MS
from rcm_daemon.core.controller import Controller
from rcm_daemon.errors import RcmError
from rcm_daemon.io.sockets import Context, bind, connect_slices
from rcm_daemon.local_daemon import free_endpoint
from rcm_daemon.simulator.publisher import Publisher
from rcm_daemon.watch import subscribe

if TYPE_CHECKING:
    from rcm_daemon.bench.stream import Pictures

ANSWER = bytes(7_000)
"""As long as a result of sixty slices."""
TOPIC = b"strata.echo"


class Echo:
    """What the daemon would cost if it cost nothing: the same sockets, the same slices; a context manager."""

    name = TRANSPORT

    def __init__(self, context: Context, pictures: Pictures) -> None:
        slices, results = free_endpoint(), free_endpoint()
        self._pictures = pictures
        self._controller = Controller("echo", "echo")
        self._plan = pictures.plan("echo")
        command = [sys.executable, "-m", "rcm_daemon.bench.echo", slices, results]
        self._process = subprocess.Popen(command)  # noqa: S603
        self._publisher = Publisher(context, slices)
        self._results = subscribe(results, TOPIC.decode())

    def __enter__(self) -> Echo:
        try:
            if not self._publisher.wait_for_subscriber(PATIENCE_MS / 1e3):
                raise RcmError("the process that answers must connect to what is published, it did not")
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

    def run(self, index: int) -> float:
        """Send slice `index` and wait for the answer; milliseconds."""
        message = self._controller.slice(self._plan, index, self._pictures.image(index), time.time_ns())
        begun_ns = time.monotonic_ns()
        self._publisher.send(message)
        if not self._results.poll(PATIENCE_MS):
            raise RcmError(f"an answer must come within {PATIENCE_MS / 1e3:g} s, it did not")
        self._results.recv_multipart()
        return (time.monotonic_ns() - begun_ns) / 1e6


def main() -> None:
    """Answer every slice at once."""
    slices, results = sys.argv[1:]
    context = Context()
    subscriber, publisher = connect_slices(context, slices, "sub"), context.socket(zmq.XPUB)
    bind(publisher, results, "answers")
    publisher.recv()  # the one who measures is there
    while True:
        subscriber.recv_multipart(copy=False)
        publisher.send_multipart([TOPIC, ANSWER])


if __name__ == "__main__":
    main()
