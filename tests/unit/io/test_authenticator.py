"""The authenticator's answers, question by question; only one kind of them lets anybody in."""

from __future__ import annotations

import contextlib

import pytest
import zmq
from zmq.utils import z85

from rcm_daemon.io.allow_list import allow, revoke
from rcm_daemon.io.authenticator import ZAP_ENDPOINT, Authenticator
from rcm_daemon.io.curve import ZAP_DOMAIN, CurveClient, CurveServer, peer_key
from rcm_daemon.io.door import Door
from rcm_daemon.io.keys import load_key_pair, load_public_key, new_key_pair

PATIENCE_MS = 10_000


@pytest.fixture
def keys(tmp_path):
    for name in ("daemon", "viewer", "stranger"):
        new_key_pair(tmp_path, name)
    allow(tmp_path, "viewer", load_public_key(tmp_path, "viewer"), "")
    return tmp_path


@pytest.fixture
def asking(keys):
    with zmq.Context() as context, contextlib.closing(Authenticator(context, keys)):
        with context.socket(zmq.REQ) as socket:
            socket.linger = 0
            socket.connect(ZAP_ENDPOINT)
            yield socket


def answer(asking, key, version=b"1.0", domain=ZAP_DOMAIN, mechanism=b"CURVE"):
    asking.send_multipart([version, b"7", domain, b"10.0.0.9", b"", mechanism, *key])
    assert asking.poll(PATIENCE_MS)
    replied_version, request_id, status, _, user_id, metadata = asking.recv_multipart()
    assert (replied_version, request_id, metadata) == (b"1.0", b"7", b"")
    return status, user_id


def raw(keys, name):
    return z85.decode(load_public_key(keys, name))


@pytest.mark.hazard("H52")
def test_an_allowed_key_is_let_in_under_its_own_name(asking, keys):
    assert answer(asking, [raw(keys, "viewer")]) == (b"200", load_public_key(keys, "viewer"))


@pytest.mark.hazard("H52")
@pytest.mark.parametrize(
    "question",
    [
        {"domain": b"other"},
        {"domain": b""},
        {"version": b"2.0"},
        {"mechanism": b"NULL"},
        {"mechanism": b"PLAIN"},
        {"key": []},
        {"key": [b"user", b"password"]},
    ],
)
def test_any_other_question_is_answered_with_no(asking, keys, question):
    given = {"key": [raw(keys, "viewer")], **question}
    assert answer(asking, **given) == (b"400", b"")


@pytest.mark.hazard("H52")
def test_keys_come_and_go_while_it_runs(asking, keys):
    stranger = [raw(keys, "stranger")]
    assert answer(asking, stranger)[0] == b"400"
    allow(keys, "stranger", load_public_key(keys, "stranger"), "m1")
    assert answer(asking, stranger)[0] == b"200"
    revoke(keys, "stranger")
    assert answer(asking, stranger)[0] == b"400"


@pytest.mark.hazard("H53")
def test_a_damaged_list_lets_nobody_new_in(asking, keys):
    assert answer(asking, [raw(keys, "viewer")])[0] == b"200"
    (keys / "allowed.json").write_text("{")
    assert answer(asking, [raw(keys, "viewer")]) == (b"500", b"")


@pytest.mark.hazard("H53")
def test_without_an_authenticator_a_locked_socket_refuses_everybody(keys):
    own = new_key_pair(keys, "own")
    with zmq.Context() as context, context.socket(zmq.ROUTER) as server, context.socket(zmq.DEALER) as client:
        server.linger = client.linger = 0
        CurveServer(own).secure(server)
        port = server.bind_to_random_port("tcp://127.0.0.1")
        CurveClient(new_key_pair(keys, "other"), own.public).secure(client)
        refused = server.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
        client.connect(f"tcp://127.0.0.1:{port}")
        client.send(b"hello")
        assert refused.poll(PATIENCE_MS)
        assert not server.poll(0)
        server.disable_monitor()
        refused.close()


def test_closing_one_that_is_dead_does_not_wait(keys, monkeypatch):
    def dying(self, request):
        raise RuntimeError("a fault")

    monkeypatch.setattr(Authenticator, "_answer", dying)
    with zmq.Context() as context:
        authenticator = Authenticator(context, keys)
        with context.socket(zmq.REQ) as asking:
            asking.linger = 0
            asking.connect(ZAP_ENDPOINT)
            asking.send_multipart([b"1.0"])
            authenticator._thread.join(10)
        assert not authenticator.is_alive
        authenticator.close()


@pytest.mark.hazard("H54")
def test_whose_frame_it_is_says_the_authenticator_and_nobody_on_an_open_socket(keys):
    pair = load_key_pair(keys, "viewer")
    with zmq.Context() as context, contextlib.closing(Authenticator(context, keys)):
        for lock in (CurveServer(load_key_pair(keys, "daemon")), None):
            with context.socket(zmq.ROUTER) as server, context.socket(zmq.DEALER) as client:
                server.linger = client.linger = 0
                if lock is not None:
                    lock.secure(server)
                    CurveClient(pair, lock.own.public).secure(client)
                port = server.bind_to_random_port("tcp://127.0.0.1")
                client.connect(f"tcp://127.0.0.1:{port}")
                client.send(b"hello")
                assert server.poll(PATIENCE_MS)
                for frame in server.recv_multipart(copy=False):
                    assert peer_key(server, frame) == (pair.public if lock is not None else None)


def test_a_door_without_keys_is_open(keys):
    with zmq.Context() as context:
        door = Door(context, keys, None)
        assert (door.is_alive, door.allows(None), door.instrument_of(None)) == (True, True, "*")
        door.close()
