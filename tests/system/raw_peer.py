"""A ZMTP 3 peer by hand (NULL mechanism), to send what no ZeroMQ library would."""

from __future__ import annotations

import socket

GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)


class RawPeer:
    """Accepts the one connection of a daemon's slices socket and shakes hands as `kind` (PUB, PUSH)."""

    def __init__(self, endpoint: str, kind: bytes) -> None:
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        with socket.create_server((host, int(port))) as listener:
            listener.settimeout(30)
            self.connection, _ = listener.accept()
        self.connection.settimeout(30)
        self.connection.sendall(GREETING)
        self._read(len(GREETING))
        body = b"\x05READY" + b"\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind
        self.connection.sendall(b"\x04" + bytes([len(body)]) + body)
        flags, length = self._read(2)
        assert flags == 4, "no READY came"
        self._read(length)

    def announce(self, n_bytes: int) -> None:
        """Begin a frame of so many bytes."""
        self.connection.sendall(b"\x02" + n_bytes.to_bytes(8, "big"))

    def is_sent_away(self) -> bool:
        """Read on until the other side closes."""
        try:
            while self.connection.recv(65_536):
                pass
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        self.connection.close()

    def _read(self, n_bytes: int) -> bytes:
        data = b""
        while len(data) < n_bytes:
            more = self.connection.recv(n_bytes - len(data))
            assert more, "closed in the handshake"
            data += more
        return data
