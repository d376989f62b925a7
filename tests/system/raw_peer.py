"""A ZMTP 3 peer by hand (NULL mechanism), to send what no ZeroMQ library would."""

from __future__ import annotations

import socket
import struct

GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)


class RawPeer:
    """Shakes hands as `kind`. PUB and PUSH accept the daemon's one connection for slices, DEALER connects."""

    def __init__(self, endpoint: str, kind: bytes) -> None:
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        if kind == b"DEALER":
            self.connection = socket.create_connection((host, int(port)))
        else:
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

    def send(self, *messages: list[bytes] | None) -> None:
        """Send messages and, for None, heartbeats (PING), all in one piece."""
        data = b""
        for message in messages:
            if message is None:
                data += b"\x04\x07\x04PING" + bytes(2)
                continue
            for number, frame in enumerate(message):
                has_more = number < len(message) - 1
                data += bytes([2 | has_more]) + len(frame).to_bytes(8, "big") + frame
        self.connection.sendall(data)

    def await_pong(self) -> None:
        """Read on until a heartbeat has been answered."""
        data = b""
        while b"\x04PONG" not in data:
            more = self.connection.recv(4_096)
            assert more, "closed"
            data += more

    def vanish(self) -> None:
        """Close as the kernel does for a killed process that had not read everything."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

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
