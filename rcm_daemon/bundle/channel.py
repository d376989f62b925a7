"""What daemon and worker say to each other.

One request is in hand at a time. Words go over a pair of sockets that keeps messages whole: a JSON object,
a line feed, and what does not fit JSON. Pixels, and embeddings on their way to the recurrent network, lie
in memory that the daemon writes and the worker can only read: they are copied once, and a worker that goes
wild cannot spoil what its successor will be given.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from rcm_daemon.bundle.manifest import VariantName
    from rcm_daemon.core.stack import PartialStack

MAX_MESSAGE_BYTES = 400 * 1024
"""More than the largest embedding and the longest stack's labels, less than the kernel passes whole."""

SMALLEST_BYTES = 64 * 1024


@dataclass(frozen=True)
class BundleInfo:
    """What the daemon knows of a bundle that a worker has opened.

    `digest` is that of what makes embeddings (`variant_digest`), `reason` why this variant runs, on
    `n_threads`, `estimator` the bundle's file, if it has one.
    """

    name: str
    version: str
    digest: str
    provider: str
    embedding_size: int
    n_threads: int
    estimator: str = ""
    variant: VariantName = "fp32"
    reason: str = ""


def encode(fields: dict[str, Any], payload: bytes | memoryview = b"") -> bytes:
    """Write one message."""
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n" + payload


def decode(message: bytes) -> tuple[dict[str, Any], bytes]:
    """Read one message as `encode` wrote it."""
    head, _, payload = message.partition(b"\n")
    return json.loads(head), payload


def ready_message(info: BundleInfo) -> bytes:
    """Say that the networks are open and warm."""
    return encode({"kind": "ready", **asdict(info)})


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a new channel; the first is the daemon's and never blocks."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MAX_MESSAGE_BYTES)
    ours.setblocking(False)
    return ours, theirs


class SharedMemory:
    """The daemon's side: one request's bytes, in memory without a name that grows as needed."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("rcm-daemon", os.MFD_CLOEXEC)
        self._map: mmap.mmap | None = None

    def reader(self) -> int:
        """Return a new descriptor that can only be read."""
        return os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)

    def write(self, blob: memoryview) -> None:
        """Put a slice's bytes at the start."""
        self._at_least(blob.nbytes)[: blob.nbytes] = blob

    def write_stack(self, stack: PartialStack, after: int = 0) -> None:
        """Put embeddings [n, e], depths [n] and weights [n] `after` a slice of so many bytes, as float32."""
        n, size = len(stack), stack.slices[0].embedding.size
        begin = _aligned(after)
        memory = np.frombuffer(
            self._at_least(begin + 4 * n * (size + 2)), np.float32, n * (size + 2), offset=begin
        )
        np.stack([s.embedding for s in stack.slices], out=memory[: n * size].reshape(n, size))
        memory[n * size : n * (size + 1)] = stack.z_um
        memory[n * (size + 1) :] = stack.weight

    def close(self) -> None:
        """Give the memory back."""
        if self._map is not None:
            self._map.close()
        os.close(self._fd)

    def _at_least(self, n_bytes: int) -> mmap.mmap:
        if self._map is None or len(self._map) < n_bytes:
            if self._map is not None:
                self._map.close()
            # Stacks grow slice by slice, and a page costs more to map anew than to fill.
            length = max(SMALLEST_BYTES, 1 << (n_bytes - 1).bit_length())
            os.ftruncate(self._fd, length)
            self._map = mmap.mmap(self._fd, length)
        return self._map


class SharedView:
    """The worker's side of `SharedMemory`: reads what a request says is there, without a copy."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._map: mmap.mmap | None = None

    def read(self, n_bytes: int) -> memoryview:
        """Return the first `n_bytes`; they change with the next request."""
        if self._map is None or len(self._map) < n_bytes:
            self._map = mmap.mmap(self._fd, 0, prot=mmap.PROT_READ)  # all there is
        return memoryview(self._map)[:n_bytes]

    def read_stack(
        self, n: int, embedding_size: int, after: int = 0
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return embeddings [n, e], depths [n] and weights [n] that lie `after` a slice of so many bytes."""
        size = n * embedding_size
        begin = _aligned(after)
        values = np.frombuffer(self.read(begin + 4 * (size + 2 * n)), np.float32, offset=begin)
        return values[:size].reshape(n, embedding_size), values[size : size + n], values[size + n :]


def _aligned(n_bytes: int) -> int:
    """Where numbers may begin after so many bytes."""
    return -(-n_bytes // 64) * 64
