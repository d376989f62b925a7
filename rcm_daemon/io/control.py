"""The control socket: requests in, answers out, at once or later."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import zmq

from rcm_daemon.core.control import ActivateBundle, Request, RequestError, parse_request
from rcm_daemon.core.rejection import Rejection, Rule
from rcm_daemon.io.curve import nobody_locked_out, peer_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from rcm_daemon.io.sockets import Socket

log = logging.getLogger("rcm_daemon")


@dataclass(frozen=True)
class Asker:
    """Where an answer goes: the peer, and the empty delimiter where it sent one."""

    envelope: tuple[bytes, ...]


class ControlSocket:
    """Reads requests of REQ and DEALER peers; a request that is none is answered here.

    Parameters
    ----------
    socket
        As `bind_control` gives it.
    allows
        Whether the holder of a key may ask; the key is None where the socket is not locked.
    lets_operate
        Whether it may change what is served.
    """

    def __init__(
        self,
        socket: Socket,
        allows: Callable[[bytes | None], bool] = nobody_locked_out,
        lets_operate: Callable[[bytes | None], bool] = nobody_locked_out,
    ) -> None:
        self.socket = socket
        self._allows = allows
        self._lets_operate = lets_operate

    def receive(self) -> tuple[Asker, Request] | None:
        """Read one request; None where it was none and has been answered with one sentence.

        Raises
        ------
        Rejection
            The asker's key has been revoked; it gets no answer.
        """
        frames = self.socket.recv_multipart(copy=False)
        key = peer_key(self.socket, frames[0])
        if not self._allows(key):
            raise Rejection(Rule.KEY_REVOKED, "the key of a request is no longer allowed")
        peer, *body = (frame.bytes for frame in frames)
        # REQ sockets put an empty delimiter first and want it back; DEALER sockets may do without.
        delimiter = [b""] if len(body) > 1 and body[0] == b"" else []
        asker = Asker((peer, *delimiter))
        try:
            if len(body) != 1 + len(delimiter):
                raise RequestError(f"a request is one frame, got {len(body) - len(delimiter)}")
            request = parse_request(body[-1])
            if isinstance(request, ActivateBundle) and not self._lets_operate(key):
                raise RequestError(
                    "a key that may activate bundles is allowed with --operator, this one was not"
                )
            return asker, request
        except RequestError as error:
            self.refuse(asker, str(error))
            return None

    def answer(self, asker: Asker, fields: dict[str, Any]) -> None:
        """Send an answer; a peer that is gone or does not read costs nothing."""
        payload = json.dumps(fields, allow_nan=False, separators=(",", ":")).encode()
        try:
            self.socket.send_multipart([*asker.envelope, payload], zmq.DONTWAIT)
        except zmq.ZMQError:
            log.warning("an answer to a control request could not be sent")

    def refuse(self, asker: Asker, sentence: str) -> None:
        """Answer that a request cannot be served."""
        self.answer(asker, {"htype": "error", "error": sentence})
