"""Publishing with last values: a late joiner gets the newest message of each open stack at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import zmq

from rcm_daemon.io.curve import nobody_locked_out, peer_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from rcm_daemon.core.stack import StackKey
    from rcm_daemon.io.sockets import Socket

TOPIC_ROOT = b"strata."
MAX_REQUESTS_A_TURN = 100
_NOBODY = b"\x00"  # no subscription that is passed on matches this topic


class ResultsSocket:
    """An XPUB in manual last-value mode.

    After a subscription has been read, libzmq sends the next message to that subscriber alone. Where there is
    no message for it, that state is ended by one that matches nobody, so that the next result reaches all.
    Where several stacks are open, the first reaches only the newcomer, the others all their subscribers, who
    know them by their `seq`.

    Parameters
    ----------
    socket
        As `bind_results` gives it.
    allows
        Whether the holder of a key may subscribe; the key is None where the socket is not locked.
    """

    def __init__(self, socket: Socket, allows: Callable[[bytes | None], bool] = nobody_locked_out) -> None:
        self.socket = socket
        self._allows = allows
        self._last: dict[StackKey, tuple[bytes, bytes]] = {}
        self._subscribed: set[bytes] = set()

    @property
    def serves_revoked(self) -> bool:
        """Whether somebody subscribed whose key has been revoked since.

        libzmq cannot send a single subscriber away, so the socket is then to be replaced.
        """
        return any(not self._allows(key) for key in self._subscribed)

    def replace_socket(self, socket: Socket) -> None:
        """Go on with a newly bound socket, to which subscribers come again of themselves."""
        self.socket = socket
        self._subscribed.clear()

    def publish(self, stack: StackKey, topic: bytes, message: bytes, *, keep: bool) -> None:
        """Send to all subscribers; `keep` it for late joiners until a message of the stack is not kept.

        Two acquisitions of one stack have one topic, and the older may end after the newer began.
        """
        if keep:
            self._last[stack] = topic, message
        else:
            self._last.pop(stack, None)
        self.socket.send_multipart([topic, message])

    def serve_subscriptions(self) -> None:
        """Read what subscribers asked for, at most so much a turn, and answer newcomers."""
        for _ in range(MAX_REQUESTS_A_TURN):
            if not self.socket.poll(0, zmq.POLLIN):
                return
            frame = self.socket.recv(copy=False)
            request, key = frame.bytes, peer_key(self.socket, frame)
            # Whoever wants everything is noted under the first letter of all topics, so that _NOBODY matches
            # nobody. Other prefixes stand for themselves: one subscriber may hold several and give up one.
            prefix = request[1:] or TOPIC_ROOT[:1]
            waiting: list[tuple[bytes, bytes]] = []
            known = prefix.startswith(TOPIC_ROOT) or TOPIC_ROOT.startswith(prefix)
            if request[:1] == b"\x01" and known and self._allows(key):
                self._subscribed |= {key} if key is not None else set()
                self.socket.setsockopt(zmq.SUBSCRIBE, prefix)
                waiting = [kept for kept in self._last.values() if kept[0].startswith(prefix)]
            elif request[:1] == b"\x00":
                self.socket.setsockopt(zmq.UNSUBSCRIBE, prefix)
            for topic_and_message in waiting:
                self.socket.send_multipart(topic_and_message)
            if not waiting:
                self.socket.send(_NOBODY)
