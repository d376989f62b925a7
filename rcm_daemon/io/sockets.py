"""The daemon's ZeroMQ sockets, each with the options that keep it honest."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Literal

import zmq

from rcm_daemon.core.wire import MAX_SLICE_BYTES
from rcm_daemon.errors import ConfigurationError, RcmError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rcm_daemon.io.curve import Curve

Context = zmq.Context[zmq.Socket[bytes]]
Socket = zmq.Socket[bytes]

CURVE_BYTES = 33
"""An encrypted frame is so much longer than what is in it."""
SLICES_QUEUED = 2
"""Slices in ZeroMQ's own queue, besides those in hand."""
INGEST_QUEUED = 128
"""Twice what a sender of acknowledged ingest may have unanswered, so that its queue is never full: libzmq
4.3.5 aborts the process (assertion `!_io_error`) when it reads a heartbeat that waited behind a full queue
and whose sender is gone."""
KEEPALIVE_S = 2
"""A peer that has been silent for so long is probed by the kernel, and given up after two probes."""
RESULTS_QUEUED = 1_000
ANSWERS_QUEUED = 1_000
MAX_REQUEST_BYTES = 64 * 1024
LINGER_MS = 1_000
REBIND_S = 5.0


def _watch_peers(socket: Socket, interval_ms: int = 200, timeout_ms: int = 600) -> None:
    """See a frozen or half-open peer within both times, and drop one that never finishes its handshake."""
    socket.heartbeat_ivl = interval_ms
    socket.heartbeat_timeout = timeout_ms
    socket.handshake_ivl = 3_000
    socket.tcp_keepalive = 1


def _keep_alive(socket: Socket) -> None:
    """See a connection that is dead, and drop a peer that never finishes its handshake.

    No heartbeats of ZeroMQ's own where slices come in: while a queue is full libzmq does not read the
    connection at all, not even heartbeats, so that a sender which is merely faster than the CNN would be
    taken for dead and all that it has queued would be lost; and libzmq 4.3.5 aborts the whole process when
    the connection is then made anew (assertion `_input_stopped`). The kernel probes whether anything is
    read or not.
    """
    socket.handshake_ivl = 3_000
    socket.tcp_keepalive = 1
    socket.tcp_keepalive_idle = KEEPALIVE_S
    socket.tcp_keepalive_intvl = 1
    socket.tcp_keepalive_cnt = 2


def connect_slices(
    context: Context, endpoint: str, kind: Literal["sub", "pull"], curve: Curve | None = None
) -> Socket:
    """Connect to a controller; a frame longer than any served slice gets its sender disconnected.

    Raises
    ------
    ConfigurationError
        An endpoint that nothing can be connected to.
    """
    socket = context.socket(zmq.SUB if kind == "sub" else zmq.PULL)
    _keep_alive(socket)
    socket.maxmsgsize = MAX_SLICE_BYTES + (CURVE_BYTES if curve is not None else 0)
    socket.rcvhwm = SLICES_QUEUED
    socket.reconnect_ivl = 100
    socket.reconnect_ivl_max = 1_000
    if kind == "sub":
        socket.subscribe(b"")
    if curve is not None:
        curve.secure(socket)
    _open(socket, socket.connect, endpoint, "slices cannot be connected to")
    return socket


def bind(socket: Socket, endpoint: str, what: str) -> None:
    """Bind, or say in one sentence why that cannot be.

    Raises
    ------
    ConfigurationError
        Port in use, no such address, or not allowed.
    """
    _open(socket, socket.bind, endpoint, f"{what} cannot be bound to")


def rebind(bind_anew: Callable[[], Socket]) -> Socket:
    """Bind again where a socket has just been closed: libzmq lets go of the port a moment later.

    Raises
    ------
    RcmError
        The port is still taken after `REBIND_S`; a restart may mend that.
    """
    give_up_s = time.monotonic() + REBIND_S
    while True:
        try:
            return bind_anew()
        except ConfigurationError as error:
            if time.monotonic() > give_up_s:
                raise RcmError(str(error)) from error
            time.sleep(0.005)


def _open(socket: Socket, attach: Callable[[str], object], endpoint: str, complaint: str) -> None:
    socket.ipv6 = "[" in endpoint
    try:
        attach(endpoint)
    except zmq.ZMQError as error:
        socket.close(linger=0)
        reason = os.strerror(error.errno) if error.errno and error.errno < 1_000 else str(error)
        raise ConfigurationError([f"{complaint} {endpoint}: {reason}"]) from error


def bind_results(context: Context, endpoint: str, curve: Curve | None = None) -> Socket:
    """Bind the XPUB on which late joiners get the last value."""
    socket = context.socket(zmq.XPUB)
    _watch_peers(socket)
    socket.setsockopt(zmq.XPUB_MANUAL_LAST_VALUE, 1)
    socket.sndhwm = RESULTS_QUEUED
    socket.maxmsgsize = MAX_REQUEST_BYTES
    socket.linger = LINGER_MS
    if curve is not None:
        curve.secure(socket)
    bind(socket, endpoint, "results")
    return socket


def bind_ingest(context: Context, endpoint: str, curve: Curve | None = None) -> Socket:
    """Bind the ROUTER that takes messages and answers each; a peer that is gone is an error, never a wait."""
    socket = context.socket(zmq.ROUTER)
    _keep_alive(socket)
    socket.router_mandatory = True
    socket.maxmsgsize = MAX_SLICE_BYTES + (CURVE_BYTES if curve is not None else 0)
    socket.rcvhwm = INGEST_QUEUED
    socket.sndhwm = ANSWERS_QUEUED
    socket.linger = LINGER_MS
    if curve is not None:
        curve.secure(socket)
    bind(socket, endpoint, "acknowledged ingest")
    return socket


def bind_control(context: Context, endpoint: str, curve: Curve | None = None) -> Socket:
    """Bind the ROUTER that answers requests."""
    socket = context.socket(zmq.ROUTER)
    _watch_peers(socket)
    socket.maxmsgsize = MAX_REQUEST_BYTES
    socket.linger = LINGER_MS
    if curve is not None:
        curve.secure(socket)
    bind(socket, endpoint, "control")
    return socket
