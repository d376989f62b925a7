"""The answer to libzmq's question whether a key may connect (ZAP, ZeroMQ RFC 27); it fails closed.

It runs in a thread of its own. Should that thread ever end, its endpoint is gone and libzmq refuses every new
connection to sockets with ZAP_ENFORCE_DOMAIN; connections that are there go on, and `is_alive` tells the
daemon, which then lets its watchdog trip.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import TYPE_CHECKING

import zmq
from zmq.utils import z85

from rcm_daemon.io.allow_list import AllowList
from rcm_daemon.io.curve import ZAP_DOMAIN

if TYPE_CHECKING:
    from pathlib import Path

ZAP_ENDPOINT = "inproc://zeromq.zap.01"
ZAP_VERSION = b"1.0"
STOP_ENDPOINT = "inproc://authenticator-stop"

log = logging.getLogger("rcm_daemon")


class Authenticator:
    """Lets the keys of an allow-list connect to the CURVE servers of one context.

    `last_refused` is what is known of the newest refusal: peer address and public key.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], keys_dir: Path) -> None:
        self._allowed = AllowList(keys_dir)
        self._zap = context.socket(zmq.REP)
        self._zap.linger = 0
        self._zap.bind(ZAP_ENDPOINT)
        self._stop = context.socket(zmq.PAIR)
        self._stop.linger = 0
        self._stop.bind(STOP_ENDPOINT)
        self._stopper = context.socket(zmq.PAIR)
        self._stopper.linger = 0
        self._stopper.connect(STOP_ENDPOINT)
        self.last_refused = ("", "")
        self._thread = threading.Thread(target=self._run, name="authenticator", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether anybody answers."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Stop answering; from here on everybody new is refused."""
        with contextlib.suppress(zmq.Again):  # one that is dead takes no word
            self._stopper.send(b"", zmq.DONTWAIT)
        self._thread.join()
        self._stopper.close()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._zap, zmq.POLLIN)
        poller.register(self._stop, zmq.POLLIN)
        try:
            while self._stop not in dict(poller.poll()):
                self._zap.send_multipart(self._answer(self._zap.recv_multipart()))
        except Exception:
            # Whatever it was: a closed endpoint refuses, a half-working authenticator might not.
            log.exception("the authenticator died, nobody new is let in")
        finally:
            self._zap.close()
            self._stop.close()

    def _answer(self, request: list[bytes]) -> list[bytes]:
        version, request_id, domain, address, _, mechanism, *credentials = request
        known = version == ZAP_VERSION and domain == ZAP_DOMAIN and mechanism == b"CURVE"
        key = z85.encode(credentials[0]) if known and len(credentials) == 1 else b""
        allowed = self._allowed.find(key)
        if self._allowed.damage:
            status, text = b"500", b"allow-list damaged"
        elif allowed is None:
            status, text = b"400", b"key not allowed"
        else:
            # The key, not its name, is the identity: a name can come to stand for another key.
            return [ZAP_VERSION, request_id, b"200", b"", key, b""]
        self.last_refused = (address.decode(errors="replace"), key.decode())
        return [ZAP_VERSION, request_id, status, text, b"", b""]
