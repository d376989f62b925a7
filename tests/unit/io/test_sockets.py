"""The slices socket against a sender that is faster than the CNN."""

from __future__ import annotations

import threading

import zmq

from rcm_daemon.io.sockets import Context, connect_slices


def test_sender_that_is_merely_faster_is_not_taken_for_dead():
    """While its queue is full libzmq sees no heartbeat; a disconnection would lose all that is queued."""
    context: Context = Context()
    n_messages, embedding_s = 60, 0.05
    with context, context.socket(zmq.PUSH) as sender:
        sender.sndhwm = 0
        sender.linger = 0
        port = sender.bind_to_random_port("tcp://127.0.0.1")
        receiver = connect_slices(context, f"tcp://127.0.0.1:{port}", "pull")
        for number in range(n_messages):
            sender.send_multipart([str(number).encode(), bytes(1_000_000)])
        received = []
        while len(received) < n_messages and receiver.poll(5_000):
            received.append(int(receiver.recv_multipart()[0]))
            threading.Event().wait(embedding_s)
        receiver.close(linger=0)
    assert received == list(range(n_messages))
