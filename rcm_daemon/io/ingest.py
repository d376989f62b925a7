"""The socket of acknowledged ingest: messages in, an answer to each out, never waiting for a peer."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import zmq

from rcm_daemon.io.curve import peer_key

if TYPE_CHECKING:
    from rcm_daemon.core.acknowledgement import Reply
    from rcm_daemon.io.sockets import Socket

log = logging.getLogger("rcm_daemon")


@dataclass(frozen=True)
class Received:
    """One multipart message: who is to be answered (empty: nobody), whose key it came with, its frames."""

    peer: bytes
    key: bytes | None
    frames: list[Any]


class IngestSocket:
    """A ROUTER that answers `rcm-slice-1` messages of DEALER peers."""

    def __init__(self, socket: Socket, credit: int) -> None:
        self.socket = socket
        self._credit = credit

    def receive(self) -> Received:
        """Read one message; a slice's bytes are not copied."""
        peer, *frames = self.socket.recv_multipart(copy=False)
        return Received(peer.bytes, peer_key(self.socket, peer), frames)

    def answer(self, reply: Reply) -> None:
        """Send an answer; who is gone or does not read will send the message again."""
        try:
            self.socket.send_multipart([reply.peer, reply.to_json(self._credit)], zmq.DONTWAIT)
        except zmq.ZMQError:
            log.info("an answer could not be sent", extra={"instrument": reply.instrument})
