"""A TCP proxy that can freeze: it keeps its connections and passes nothing on, as a cable that was pulled."""

from __future__ import annotations

import selectors
import socket
import threading


class Proxy:
    """Listens on a port of its own and passes bytes to and from `target` (tcp://host:port)."""

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("tcp://").rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._stopping = threading.Event()
        self.n_connections = 0
        self.delay_s = 0.0  # before anything is passed on, one thing after the other
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def freeze(self) -> None:
        """Pass nothing on any more on the connections that are there; new ones work."""
        for end in list(self._pairs):
            self._selector.unregister(end)
        self._frozen = self._pairs
        self._pairs = {}

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()
        for end in [*self._pairs, *getattr(self, "_frozen", {}), self._listener]:
            end.close()
        self._selector.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            for key, _ in self._selector.select(0.05):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj in self._pairs:
                    self._pass_on(key.fileobj)

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        try:
            far = socket.create_connection(self._target)
        except OSError:
            near.close()
            return
        self.n_connections += 1
        self._pairs |= {near: far, far: near}
        for end in (near, far):
            self._selector.register(end, selectors.EVENT_READ)

    def _pass_on(self, end: socket.socket) -> None:
        other = self._pairs[end]
        try:
            data = end.recv(1 << 16)
            self._stopping.wait(self.delay_s)
            other.sendall(data)
        except OSError:
            data = b""
        if not data:
            for one in (end, other):
                self._selector.unregister(one)
                self._pairs.pop(one)
                one.close()
