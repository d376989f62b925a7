"""Real processes over real sockets: a daemon, a controller written by hand, and a subscriber."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, ClassVar

import zmq

from rcm_daemon.io.allow_list import allow
from rcm_daemon.io.keys import load_key_pair, load_public_key, new_key_pair

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE_MS = 30_000


GIVEN_PORTS: set[int] = set()


def free_endpoint() -> str:
    """Return a port nobody uses, below those the kernel gives to who connects: it stays free until bound."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in GIVEN_PORTS:
                GIVEN_PORTS.add(port)
                return f"tcp://127.0.0.1:{port}"


def bind_when_free(socket_: zmq.Socket[bytes], endpoint: str) -> None:
    """Bind where another socket may just have been closed: libzmq lets go of the port a moment later."""
    give_up_s = time.monotonic() + PATIENCE_MS / 1e3
    while True:
        try:
            socket_.bind(endpoint)
        except zmq.ZMQError:
            assert time.monotonic() < give_up_s, endpoint
        else:
            return


class Locks:
    """A folder of keys: the daemon's, a controller's bound to instrument m1, a viewer's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("daemon", "vendor", "viewer"):
            new_key_pair(folder, name)
        allow(folder, "vendor", load_public_key(folder, "vendor"), "m1")
        allow(folder, "viewer", load_public_key(folder, "viewer"), "")
        self.environment = {"RCM_ENCRYPT": "always", "RCM_KEYS_DIR": str(folder)}
        self.environment["RCM_CONTROLLER_KEYS"] = "vendor"

    def client(self, socket: zmq.Socket[bytes], name: str = "viewer", server: str = "daemon") -> None:
        pair = load_key_pair(self.folder, name)
        socket.curve_publickey, socket.curve_secretkey = pair.public, pair.secret
        socket.curve_serverkey = load_public_key(self.folder, server)

    def server(self, socket: zmq.Socket[bytes], name: str = "vendor") -> None:
        socket.curve_server = True
        socket.curve_secretkey = load_key_pair(self.folder, name).secret


class Daemon:
    """`rcm-daemon serve` in a process of its own; `stop` gives its exit status."""

    running: ClassVar[list[Daemon]] = []
    program: tuple[str, ...] = ("-m", "rcm_daemon")

    def __init__(
        self,
        folder: Path,
        bundle: Path,
        *options: str,
        locks: Locks | None = None,
        await_ready: bool = True,
        **environment: str,
    ) -> None:
        self.slices, self.results, self.control = free_endpoint(), free_endpoint(), free_endpoint()
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.sockets: list[zmq.Socket[bytes]] = []  # kept, so that none is collected unclosed
        self.log = folder / "daemon.log"
        self.locks = locks
        environment = {**(locks.environment if locks else {}), **environment}
        command = [sys.executable, *self.program, "serve", "--bundle", str(bundle)]
        command += ["--slices-connect", self.slices, "--results-bind", self.results]
        command += ["--control-bind", self.control, "--state-dir", str(folder / "state"), *options]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stderr=log, env={**os.environ, **environment})
        self.running.append(self)
        if await_ready:
            assert self.ask({"htype": "get_health"})["ready"] is True

    def ask(self, request: Any, patience_ms: int = PATIENCE_MS) -> dict[str, Any]:
        """Send one request; the answer comes once the daemon serves."""
        raw = request if isinstance(request, bytes) else json.dumps(request).encode()
        with self.context.socket(zmq.REQ) as requester:
            requester.linger = 0
            if self.locks:
                self.locks.client(requester)
            requester.connect(self.control)
            requester.send(raw)
            assert requester.poll(patience_ms), self.log.read_text()[-2_000:]
            return json.loads(requester.recv())

    def kill(self) -> None:
        """End it as a power cut would; its state folder stays for the next one."""
        self.stop(signal.SIGKILL)

    def subscribe(self, topic: bytes = b"strata.") -> Subscriber:
        subscriber = Subscriber(self.context, self.results, topic, self.locks)
        self.sockets.append(subscriber.socket)
        return subscriber

    def controller(self, kind: int = zmq.XPUB) -> zmq.Socket[bytes]:
        """Bind where the daemon connects to, and wait until it listens."""
        controller = self.context.socket(kind)
        self.sockets.append(controller)
        controller.linger = 1_000
        if self.locks:
            self.locks.server(controller)
        bind_when_free(controller, self.slices)
        if kind == zmq.XPUB:
            assert controller.poll(PATIENCE_MS), "the daemon did not subscribe"
        return controller

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(30)
        self.context.destroy(linger=0)
        if self in self.running:
            self.running.remove(self)
        return code


class Subscriber:
    """A subscription that is in force when the constructor returns."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        topic: bytes,
        locks: Locks | None = None,
    ) -> None:
        self.socket = context.socket(zmq.SUB)
        self.socket.linger = 0
        if locks:
            locks.client(self.socket)
        monitor = self.socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self.socket.subscribe(topic)
        self.socket.connect(endpoint)
        assert monitor.poll(PATIENCE_MS)
        self.socket.disable_monitor()
        monitor.close()

    def next(self) -> dict[str, Any]:
        assert self.socket.poll(PATIENCE_MS), "no result came"
        topic, payload = self.socket.recv_multipart()
        message = json.loads(payload)
        assert topic.startswith(b"strata.")
        return message | {"topic": topic}

    def until(self, **wanted: Any) -> dict[str, Any]:
        """Read on until a message has these values."""
        while True:
            message = self.next()
            if all(message[key] == value for key, value in wanted.items()):
                return message
