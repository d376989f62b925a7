"""Publishing with last values: a late joiner gets the newest message of each open stack at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import zmq

if TYPE_CHECKING:
    from rcm_daemon.io.sockets import Socket

TOPIC_ROOT = b"strata."
_NOBODY = b"\x00"  # no subscription that is passed on matches this topic


class ResultsSocket:
    """An XPUB in manual last-value mode.

    After a subscription has been read, libzmq sends the next message to that subscriber alone. Where there is
    no message for it, that state is ended by one that matches nobody, so that the next result reaches all.
    Where several stacks are open, the first reaches only the newcomer, the others all their subscribers, who
    know them by their `seq`.
    """

    def __init__(self, socket: Socket) -> None:
        self.socket = socket
        self._last: dict[bytes, bytes] = {}

    def publish(self, topic: bytes, message: bytes, *, keep: bool) -> None:
        """Send to all subscribers; `keep` it for late joiners until a message of the topic is not kept."""
        if keep:
            self._last[topic] = message
        else:
            self._last.pop(topic, None)
        self.socket.send_multipart([topic, message])

    def serve_subscriptions(self) -> None:
        """Read what subscribers asked for, and answer newcomers."""
        while self.socket.poll(0, zmq.POLLIN):
            request = self.socket.recv()
            wanted = request[1:]
            # Whoever wants all topics is noted under their common root, so that _NOBODY matches nobody.
            prefix = TOPIC_ROOT if TOPIC_ROOT.startswith(wanted) else wanted
            waiting: list[bytes] = []
            if request[:1] == b"\x01" and prefix.startswith(TOPIC_ROOT):
                self.socket.setsockopt(zmq.SUBSCRIBE, prefix)
                waiting = [topic for topic in self._last if topic.startswith(prefix)]
            elif request[:1] == b"\x00":
                self.socket.setsockopt(zmq.UNSUBSCRIBE, prefix)
            for topic in waiting:
                self.socket.send_multipart([topic, self._last[topic]])
            if not waiting:
                self.socket.send(_NOBODY)
