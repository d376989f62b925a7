"""For acquisition controllers in Python: sends stacks to a daemon and knows what of them is stored.

Needs pyzmq and numpy, nothing else of this package::

    from rcm_daemon.client import Client

    with Client("tcp://127.0.0.1:6783", "m1") as daemon:
        daemon.start_stack("first stack", shape=(1000, 1000), pixel_size_um=0.5, n_slices=len(images))
        for index, image in enumerate(images):
            daemon.send_slice(index, image, z_um=3.0 * index)
        daemon.end_stack()

What has not been acknowledged is sent again, in order, whenever the connection is made anew; the daemon
knows repeated messages. Leaving the block waits until all is acknowledged, which is not yet stored: of
messages that are refused `refusals` tells. One thread uses a client at a time.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import time
import zlib
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import zmq
from zmq.utils.monitor import recv_monitor_message

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from numpy.typing import NDArray

SILENCE_S = 15.0
"""With messages unanswered for so long the connection is made anew and they are sent again."""
HEARTBEAT_MS = 1_000
HANDSHAKE_MS = 3_000
MAX_SLOWNESS = 16
"""A daemon that is starved of CPU is no dead one: each time a connection is given up before anything was
answered, the next is given twice as long, up to so many times. Else all would be sent again and again, faster
than it can be answered, and the daemon would do nothing but take repeats.
"""
RECONNECT_MS = 50
POLL_S = 0.2


class NotAcknowledgedError(Exception):
    """The daemon has not answered for longer than the client's patience."""


@dataclass(frozen=True)
class Refusal:
    """A message that the daemon did not take, and why; `index` is -1 for what is no slice."""

    msg_number: int
    stack_id: str
    index: int
    status: str
    error: str


class Client:
    """One run of one instrument over acknowledged ingest.

    Parameters
    ----------
    endpoint
        The daemon's `ingest_bind`.
    instrument
        `[A-Za-z0-9_-]{1,64}`.
    run_id
        New at each start of the controller; made up where not given.
    patience_s
        How long a call may wait without any answer before it raises `NotAcknowledgedError`.
    allow_unencrypted_remote
        Whether slices may go where others can listen although no keys are set.
    secure
        Sets keys on every new socket, for a daemon that demands them (`curve_publickey`, `curve_secretkey`,
        `curve_serverkey`).

    Raises
    ------
    ValueError
        Slices would leave the machine unencrypted, and nobody said that they may.

    Attributes
    ----------
    n_acknowledged
        Messages answered, refused ones among them.
    n_stored
        Of these, messages that the daemon has.
    refusals
        What was refused, or stands in conflict with what the daemon has.
    """

    def __init__(
        self,
        endpoint: str,
        instrument: str,
        run_id: str = "",
        *,
        patience_s: float = 60.0,
        secure: Callable[[zmq.Socket[bytes]], None] | None = None,
        allow_unencrypted_remote: bool = False,
    ) -> None:
        if secure is None and not allow_unencrypted_remote and not _stays_here(endpoint):
            raise ValueError(
                f"{endpoint} is not loopback: give secure, which sets keys, or allow_unencrypted_remote=True"
            )
        self.instrument = instrument
        self.run_id = run_id or f"{time.time_ns()}-{os.getpid()}"
        self.n_acknowledged = 0
        self.n_stored = 0
        self.refusals: list[Refusal] = []
        self._endpoint = endpoint
        self._patience_s = patience_s
        self._secure = secure
        self._next_number = 0
        self._credit = 1  # the first answer says how many
        self._unanswered: OrderedDict[int, Sequence[bytes | memoryview]] = OrderedDict()
        self._unsent: deque[int] = deque()
        self._stack: dict[str, Any] = {}
        self._n_slices = 0
        self._answered_s = time.monotonic()
        self._slowness = 1
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            self._connect()
        except BaseException:
            self._context.destroy(linger=0)
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self.close()

    # --- a controller's own words ---

    def start_stack(
        self,
        stack_id: str,
        *,
        shape: tuple[int, int],
        pixel_size_um: float,
        dtype: str = "uint8",
        n_slices: int = 0,
        z_start_um: float = 0.0,
        z_step_um: float = 0.0,
    ) -> None:
        """Begin a stack; `n_slices` and `z_step_um` are 0 where not known or not constant."""
        self._stack = {
            "stack_id": stack_id,
            "shape": list(shape),
            "dtype": dtype,
            "pixel_size_um": pixel_size_um,
        }
        self._n_slices = 0
        planned = {"n_slices": n_slices, "z_start_um": z_start_um, "z_step_um": z_step_um}
        self._say("stack_start", None, **planned, **self._stack)

    def send_slice(
        self, index: int, image: NDArray[np.uint8] | NDArray[np.uint16], z_um: float, *, max_value: int = 0
    ) -> None:
        """Send slice `index` [rows, columns] of the stack begun last; its bytes are copied."""
        blob = np.ascontiguousarray(image, image.dtype.newbyteorder("<")).tobytes()
        now_ns = time.time_ns()
        self._say(
            "slice",
            blob,
            index=index,
            z_um=z_um,
            max_value=max_value,
            byte_order="little",
            encoding="raw",
            crc32=zlib.crc32(blob),
            time_s=now_ns // 1_000_000_000,
            time_ns=now_ns % 1_000_000_000,
            **self._stack,
        )
        self._n_slices += 1

    def end_stack(self, reason: str = "completed") -> None:
        """End the stack begun last: `completed` or `aborted`."""
        self._say("stack_end", stack_id=self._stack["stack_id"], n_slices=self._n_slices, reason=reason)

    def _say(self, htype: str, blob: bytes | None = None, **keys: Any) -> None:
        header = {
            "htype": htype,
            "schema": "rcm-slice-1",
            "instrument": self.instrument,
            "run_id": self.run_id,
            "msg_number": self._next_number,
            **keys,
        }
        try:
            frames = [json.dumps(header, allow_nan=False).encode()]
        except ValueError as error:  # such a message the daemon could not even read the number of
            key, value = next(item for item in header.items() if not _is_finite(item[1]))
            raise ValueError(f"the numbers of a {htype} must be finite, got {key} = {value}") from error
        self.post(self._next_number, frames if blob is None else [*frames, blob])

    # --- sending until acknowledged ---

    @property
    def n_unanswered(self) -> int:
        """Messages in flight."""
        return len(self._unanswered)

    def post(self, msg_number: int, frames: Sequence[bytes | memoryview]) -> None:
        """Send a message of `rcm-slice-1` that the caller has written; its bytes must not change any more.

        Waits while as many messages are unanswered as the daemon allows.

        Raises
        ------
        NotAcknowledgedError
            The daemon is silent; the message will not be sent.
        """
        self._wait_until(lambda: len(self._unanswered) < self._credit)
        self._next_number = msg_number + 1
        if not self._unanswered:
            self._answered_s = time.monotonic()
        self._unanswered[msg_number] = frames
        self._unsent.append(msg_number)
        self._pump(0.0)

    def tell(self, frames: Sequence[bytes | memoryview]) -> None:
        """Send a heartbeat that the caller has written, if that can be done at once; it is not sent again."""
        with contextlib.suppress(zmq.Again):
            self._socket.send_multipart(frames, zmq.DONTWAIT)
        self._pump(0.0)

    def wait(self) -> None:
        """Return when everything has been answered.

        Raises
        ------
        NotAcknowledgedError
            The daemon is silent.
        """
        self._wait_until(lambda: not self._unanswered)

    def close(self) -> None:
        """Let go of the connection; what is unanswered may or may not arrive."""
        self._disconnect()
        self._context.term()

    def _wait_until(self, done: Callable[[], bool]) -> None:
        give_up_s = time.monotonic() + self._patience_s
        n_before = self.n_acknowledged
        while not done():
            self._pump(POLL_S)
            if self.n_acknowledged != n_before:
                n_before, give_up_s = self.n_acknowledged, time.monotonic() + self._patience_s
            elif time.monotonic() > give_up_s:
                unread = [refusal.error for refusal in self.refusals if refusal.msg_number == -1]
                raise NotAcknowledgedError(
                    f"{self._endpoint} must answer within {self._patience_s:g} s, got nothing for "
                    f"{len(self._unanswered)} message(s)"
                    + (f"; one could not be read ({unread[-1]})" if unread else "")
                )

    def _pump(self, patience_s: float) -> None:
        """Send what can be sent, take what was answered, and connect anew where that is due."""
        poller = zmq.Poller()
        poller.register(self._monitor, zmq.POLLIN)
        poller.register(self._socket, zmq.POLLIN | (zmq.POLLOUT if self._unsent else 0))
        ready = dict(poller.poll(round(patience_s * 1e3)))
        while ready.get(self._socket, 0) & zmq.POLLOUT and self._unsent:
            try:
                frames = self._unanswered[self._unsent[0]]
                self._socket.send_multipart(frames, zmq.DONTWAIT)
            except zmq.Again:
                break
            self._unsent.popleft()
        while ready.get(self._socket, 0) & zmq.POLLIN and self._socket.poll(0):
            self._take(json.loads(self._socket.recv_multipart()[-1]))
        lost = self._monitor in ready and self._saw_disconnection()
        now_s = time.monotonic()
        silence_s = SILENCE_S * self._slowness
        silent = len(self._unsent) < len(self._unanswered) and now_s - self._answered_s > silence_s
        if lost or silent:
            self._answered_s = now_s
            self._slowness = min(2 * self._slowness, MAX_SLOWNESS)
            self._disconnect()
            self._connect()

    def _take(self, answer: dict[str, Any]) -> None:
        self._credit = max(1, int(answer["credit"]))
        self._answered_s = time.monotonic()
        self._slowness = 1
        number = answer["msg_number"]
        if answer["of"] == "heartbeat":  # which bears the number of the message before it
            return
        if number == -1 and answer["status"] == "rejected":  # it could not be read which one this is
            unread = self._refusal(answer)
            if unread not in self.refusals:
                self.refusals.append(unread)
            return
        if answer["run_id"] != self.run_id or self._unanswered.pop(number, None) is None:
            return  # of a message that was sent twice and answered before
        if number in self._unsent:
            self._unsent.remove(number)
        self.n_acknowledged += 1
        if answer["status"] in ("stored", "duplicate"):
            self.n_stored += 1
        else:
            self.refusals.append(self._refusal(answer))

    @staticmethod
    def _refusal(answer: dict[str, Any]) -> Refusal:
        keys = ("msg_number", "stack_id", "index", "status", "error")
        return Refusal(**{key: answer[key] for key in keys})

    def _saw_disconnection(self) -> bool:
        seen = False
        while self._monitor.poll(0):
            seen |= recv_monitor_message(self._monitor)["event"] == zmq.EVENT_DISCONNECTED
        return seen

    def _connect(self) -> None:
        socket = self._context.socket(zmq.DEALER)
        socket.linger = 0
        socket.immediate = True  # nothing is queued for a connection that is not there
        socket.reconnect_ivl = RECONNECT_MS
        socket.heartbeat_ivl = HEARTBEAT_MS
        socket.heartbeat_timeout = 2 * HEARTBEAT_MS * self._slowness
        socket.handshake_ivl = HANDSHAKE_MS * self._slowness
        if self._secure is not None:
            self._secure(socket)
        self._monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        socket.connect(self._endpoint)
        self._socket = socket
        self._unsent = deque(self._unanswered)

    def _disconnect(self) -> None:
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)


def _is_finite(value: Any) -> bool:
    """Whether JSON can hold a value and all that is in it."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def _stays_here(endpoint: str) -> bool:
    """Whether only this machine can reach an endpoint."""
    scheme, _, address = endpoint.partition("://")
    host = address.rpartition(":")[0].removeprefix("[").removesuffix("]")
    if scheme in ("ipc", "inproc") or host == "localhost":
        return True
    try:
        return scheme == "tcp" and ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
