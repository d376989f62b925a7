"""The client against a daemon of a few lines, which answers when it is told to."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import zmq

from rcm_daemon.client import Client, NotAcknowledgedError
from rcm_daemon.core.wire import parse

PATIENCE_MS = 30_000


class Answerer:
    """A ROUTER at one endpoint over several lives."""

    def __init__(self):
        self.context = zmq.Context()
        self.endpoint = "tcp://127.0.0.1:*"
        self.socket = None
        self.begin()

    def begin(self):
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.linger = 0
        while True:
            try:
                self.socket.bind(self.endpoint)
                break
            except zmq.ZMQError:  # libzmq lets go of a port a moment after it was closed
                continue
        self.endpoint = self.socket.last_endpoint.decode().rstrip("\0")

    def die(self):
        self.socket.close(linger=0)

    def take(self):
        assert self.socket.poll(PATIENCE_MS), "nothing came"
        peer, *frames = self.socket.recv_multipart()
        return peer, parse(frames)

    def answer(self, peer, message, status="stored", error="", credit=4):
        header = getattr(message, "header", message)
        ack = {
            "htype": "ack",
            "schema": "rcm-ack-1",
            "instrument": header.instrument,
            "run_id": header.run_id,
            "msg_number": header.msg_number,
            "of": header.htype,
            "stack_id": header.stack_id,
            "index": getattr(header, "index", -1),
            "status": status,
            "error": error,
            "credit": credit,
        }
        self.socket.send_multipart([peer, json.dumps(ack).encode()])

    def answer_unread(self, peer):
        """Refuse a message of which not even the number could be read."""
        nobody = {"instrument": "", "run_id": "", "msg_number": -1, "of": "", "stack_id": "", "index": -1}
        ack = {"htype": "ack", "schema": "rcm-ack-1", **nobody}
        ack |= {"status": "rejected", "error": "R110 bad_header: no", "credit": 4}
        self.socket.send_multipart([peer, json.dumps(ack).encode()])

    def close(self):
        self.socket.close(linger=0)
        self.context.term()


@pytest.fixture
def answerer():
    answerer = Answerer()
    yield answerer
    answerer.close()


@pytest.fixture
def client(answerer):
    client = Client(answerer.endpoint, "m1", "run", patience_s=30.0)
    yield client
    client.close()


def begin(client, answerer, credit=4):
    client.start_stack("s", shape=(4, 6), pixel_size_um=0.5, n_slices=9)
    while client.n_unanswered:
        client._pump(0.05)
        if answerer.socket.poll(0):
            answerer.answer(*answerer.take(), credit=credit)


@pytest.mark.hazard("H64")
@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://192.0.2.1:6783",
        "tcp://scope.example:6783",
        "tcp://[2001:db8::1]:6783",
        "tcp://127.0.0.1:0;192.0.2.1:6783",
    ],
)
def test_nothing_leaves_the_machine_in_the_clear_unless_that_is_wanted(endpoint):
    with pytest.raises(ValueError, match="is not loopback: give secure"):
        Client(endpoint, "m1")
    Client(endpoint, "m1", allow_unencrypted_remote=True).close()
    Client(endpoint, "m1", secure=lambda _socket: None).close()


@pytest.mark.parametrize(
    "endpoint", ["tcp://127.0.0.2:1", "tcp://localhost:1", "tcp://[::1]:1", "ipc:///tmp/x"]
)
def test_on_one_machine_no_keys_are_needed(endpoint):
    Client(endpoint, "m1").close()


def test_its_messages_are_what_the_wire_wants(client, answerer):
    begin(client, answerer)
    image = np.arange(24, dtype=np.uint16).reshape(4, 6)
    client.start_stack("t", shape=(4, 6), pixel_size_um=0.25, dtype="uint16", z_start_um=-3.0, z_step_um=1.5)
    client.send_slice(7, image[::-1], 10.5, max_value=4_095)
    client.end_stack("aborted")
    _, start = answerer.take()
    _, received = answerer.take()
    _, end = answerer.take()
    assert (start.stack_id, start.dtype, start.z_start_um, start.msg_number) == ("t", "uint16", -3.0, 1)
    assert np.array_equal(received.pixels, image[::-1])
    assert (received.header.index, received.header.z_um, received.header.max_value) == (7, 10.5, 4_095)
    assert (end.n_slices, end.reason, end.msg_number, end.instrument) == (1, "aborted", 3, "m1")


@pytest.mark.hazard("H39")
def test_no_more_is_in_flight_than_allowed(client, answerer):
    begin(client, answerer, credit=3)
    image = np.zeros((4, 6), np.uint8)
    for index in range(3):
        client.send_slice(index, image, 0.0)
    client._patience_s = 0.1
    with pytest.raises(
        NotAcknowledgedError, match=r"must answer within 0.1 s, got nothing for 3 message\(s\)"
    ):
        client.send_slice(3, image, 0.0)
    assert client.n_unanswered == 3


@pytest.mark.hazard("H50")
def test_after_a_disconnection_it_goes_on_at_the_first_that_was_not_acknowledged(client, answerer):
    begin(client, answerer, credit=8)
    image = np.zeros((4, 6), np.uint8)
    for index in range(5):
        client.send_slice(index, image, 0.0)
    taken = [answerer.take() for _ in range(5)]
    answerer.answer(*taken[0])
    answerer.answer(*taken[1])
    while client.n_unanswered > 3:
        client._pump(0.05)
    answerer.die()
    answerer.begin()
    numbers = []
    while client.n_unanswered:
        client._pump(0.05)
        if answerer.socket.poll(0):
            peer, message = answerer.take()
            numbers.append(message.header.msg_number)
            answerer.answer(peer, message, "duplicate")
    assert numbers == [3, 4, 5]
    assert client.refusals == []


def test_refusals_and_conflicts_are_kept_and_not_sent_again(client, answerer):
    begin(client, answerer)
    image = np.zeros((4, 6), np.uint8)
    for index, status in enumerate(("rejected", "conflict", "duplicate", "stored")):
        client.send_slice(index, image, 0.0)
        answerer.answer(*answerer.take(), status=status, error="R000 no")
    client.wait()
    found = [(r.msg_number, r.stack_id, r.index, r.status, r.error) for r in client.refusals]
    assert found == [(1, "s", 0, "rejected", "R000 no"), (2, "s", 1, "conflict", "R000 no")]
    assert (client.n_stored, client.n_acknowledged) == (3, 5)


@pytest.mark.parametrize("z_um", [float("nan"), float("inf")])
def test_a_depth_that_is_no_number_is_refused_before_it_is_sent(client, answerer, z_um):
    begin(client, answerer)
    with pytest.raises(ValueError, match=rf"^the numbers of a slice must be finite, got z_um = {z_um}$"):
        client.send_slice(0, np.zeros((4, 6), np.uint8), z_um)
    client.send_slice(0, np.zeros((4, 6), np.uint8), 3.0)
    answerer.answer(*answerer.take())
    client.wait()
    assert (client.n_acknowledged, client.refusals) == (2, [])


def test_a_message_whose_number_could_not_be_read_is_told_once(client, answerer):
    begin(client, answerer)
    client.send_slice(0, np.zeros((4, 6), np.uint8), 0.0)
    peer, message = answerer.take()
    for _ in range(2):
        answerer.answer_unread(peer)
    answerer.answer(peer, message)
    client.wait()
    (refusal,) = client.refusals
    assert (refusal.msg_number, refusal.error) == (-1, "R110 bad_header: no")


def test_the_caller_may_reuse_the_picture(client, answerer):
    begin(client, answerer)
    image = np.ones((4, 6), np.uint8)
    client.send_slice(0, image, 0.0)
    image[:] = 9
    assert answerer.take()[1].pixels.max() == 1


def test_an_answer_to_a_heartbeat_answers_nothing_else(client, answerer):
    begin(client, answerer)
    client.send_slice(0, np.zeros((4, 6), np.uint8), 0.0)
    peer, message = answerer.take()
    header = message.header
    beat = {"htype": "heartbeat", "schema": "rcm-slice-1", "instrument": "m1", "run_id": "run"}
    beat |= {"msg_number": header.msg_number, "stack_id": "s", "time_s": 0, "time_ns": 0}
    client.tell([json.dumps(beat).encode()])
    answerer.answer(*answerer.take())
    client._pump(0.5)
    assert client.n_unanswered == 1
    answerer.answer(peer, message)
    client.wait()


def test_leaving_a_block_by_an_exception_does_not_wait(answerer):
    with pytest.raises(KeyError), Client(answerer.endpoint, "m1") as client:
        client.start_stack("s", shape=(4, 6), pixel_size_um=0.5)
        raise KeyError


def test_it_needs_pyzmq_and_numpy_alone():
    program = (
        "import sys, rcm_daemon.client\n"
        "print(sorted(n for n in ('pydantic', 'typer', 'cv2', 'onnxruntime') if n in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
