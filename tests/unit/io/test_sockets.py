"""The slices socket against senders that are faster than the CNN, and against such as are gone."""

from __future__ import annotations

import os
import socket
import threading

import pytest
import zmq

from rcm_daemon.core.wire import MAX_SLICE_BYTES
from rcm_daemon.io.sockets import Context, bind_ingest, connect_slices


def receive_all(receiver, n_messages, pause_s):
    received = []
    while len(received) < n_messages and receiver.poll(30_000):
        received.append(int(receiver.recv_multipart()[0]))
        threading.Event().wait(pause_s)
    return received


@pytest.mark.parametrize(("pause_s", "stall_s"), [(0.05, 0.0), (0.0, 6.0)])
def test_sender_that_is_merely_faster_is_not_taken_for_dead(pause_s, stall_s):
    """Slowly read, or not read at all for longer than any heartbeat, as while a worker hangs."""
    context: Context = Context()
    n_messages = 60
    with context, context.socket(zmq.PUSH) as sender:
        sender.sndhwm = 0
        sender.linger = 0
        port = sender.bind_to_random_port("tcp://127.0.0.1")
        receiver = connect_slices(context, f"tcp://127.0.0.1:{port}", "pull")
        for number in range(n_messages):
            sender.send_multipart([str(number).encode(), bytes(1_000_000)])
        assert receiver.poll(30_000)
        threading.Event().wait(stall_s)
        received = receive_all(receiver, n_messages, pause_s)
        receiver.close(linger=0)
    assert received == list(range(n_messages))


def keepalive_of(port):
    """What the kernel was told about this process's connections from or to a local port."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        if not os.path.islink(f"/proc/self/fd/{name}") or "socket:" not in os.readlink(
            f"/proc/self/fd/{name}"
        ):
            continue
        try:
            with socket.socket(fileno=os.dup(int(name))) as end:
                if port in (end.getsockname()[1], end.getpeername()[1]):
                    options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
                    found.append(tuple(end.getsockopt(socket.IPPROTO_TCP, option) for option in options))
        except OSError:
            continue
    return found


@pytest.mark.hazard("H51")
def test_the_kernel_probes_connections_that_slices_come_over():
    context: Context = Context()
    with context, context.socket(zmq.PUSH) as sender, context.socket(zmq.DEALER) as dealer:
        port = sender.bind_to_random_port("tcp://127.0.0.1")
        slices = connect_slices(context, f"tcp://127.0.0.1:{port}", "pull")
        ingest = bind_ingest(context, "tcp://127.0.0.1:*")
        endpoint = ingest.last_endpoint.decode().rstrip("\0")
        dealer.connect(endpoint)
        sender.send(b"x")
        dealer.send(b"x")
        assert slices.poll(30_000)
        assert ingest.poll(30_000)
        assert (2, 1, 2) in keepalive_of(port)
        assert (2, 1, 2) in keepalive_of(int(endpoint.rpartition(":")[2]))
        slices.close(linger=0)
        ingest.close(linger=0)


@pytest.mark.hazard("H07")
@pytest.mark.parametrize("locked", [False, True])
def test_a_slice_of_exactly_the_largest_size_comes_through_encrypted_too(locked):
    context: Context = Context()
    with context, context.socket(zmq.PUSH) as sender:
        sender.linger = 0
        curve = None
        if locked:
            (public, secret), mine = zmq.curve_keypair(), zmq.curve_keypair()
            sender.curve_server, sender.curve_secretkey = True, secret
            curve = Curve(public, mine)
        port = sender.bind_to_random_port("tcp://127.0.0.1")
        receiver = connect_slices(context, f"tcp://127.0.0.1:{port}", "pull", curve)
        sender.send(bytes(MAX_SLICE_BYTES))
        assert receiver.poll(60_000)
        assert len(receiver.recv()) == MAX_SLICE_BYTES
        receiver.close(linger=0)


class Curve:
    """What locks the end that connects."""

    def __init__(self, server, mine):
        self.server, self._mine = server, mine

    def secure(self, socket):
        socket.curve_publickey, socket.curve_secretkey = self._mine
        socket.curve_serverkey = self.server
