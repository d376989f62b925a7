"""Who gets in and who does not: a daemon with every socket locked."""

from __future__ import annotations

import json
import os
import resource
import socket
import textwrap

import pytest
import zmq
from harness import PATIENCE_MS, Daemon, Locks, bind_when_free, free_endpoint
from sender import Sender, picture
from tiny_bundle import FIELD
from unit_file import Manager

from rcm_daemon.io.allow_list import allow, revoke
from rcm_daemon.io.keys import load_public_key, new_key_pair

FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_DISCONNECTED
)


@pytest.fixture
def locks(tmp_path):
    return Locks(tmp_path / "keys")


@pytest.fixture
def daemon(tmp_path, bundle, locks):
    daemon = Daemon(tmp_path, bundle, locks=locks)
    yield daemon
    assert daemon.stop() == 0


def send(controller, *messages):
    for frames in messages:
        controller.send_multipart(frames)


class Stream:
    """The good stream: one slice after the other, each answered by a result."""

    def __init__(self, daemon):
        self.results, self.controller, self.sender = daemon.subscribe(), daemon.controller(), Sender()
        self.n_sent = 0

    def goes_on(self):
        send(self.controller, self.sender.slice("s", self.n_sent, picture(self.n_sent, FIELD)))
        self.n_sent += 1
        message = self.results.until(n_slices=self.n_sent)
        assert (message["n_lost"], message["n_rejected"]) == (0, 0)


def refused_count(daemon, reason, socket_name="results"):
    health = daemon.ask({"htype": "get_health"})
    counts = dict(zip(health["refused_connection"], health["refused_count"], strict=True))
    return sum(n for which, n in counts.items() if which.startswith(f"{socket_name}/{reason}"))


def connection_fails(daemon, secure, kind=zmq.SUB, endpoint=None):
    """Connect and wait until the attempt has been turned down."""
    with daemon.context.socket(kind) as intruder:
        intruder.linger = 0
        intruder.handshake_ivl = 1_000
        monitor = intruder.get_monitor_socket(FAILED | zmq.EVENT_HANDSHAKE_SUCCEEDED)
        secure(intruder)
        if kind == zmq.SUB:
            intruder.subscribe(b"")
        intruder.connect(endpoint or daemon.results)
        assert monitor.poll(PATIENCE_MS)
        event = int.from_bytes(monitor.recv_multipart()[0][:2], "little")
        assert event != zmq.EVENT_HANDSHAKE_SUCCEEDED
        assert not intruder.poll(0)
        intruder.disable_monitor()
        monitor.close()


def no_key(intruder):
    del intruder


def unknown_key(daemon):
    def secure(intruder):
        intruder.curve_publickey, intruder.curve_secretkey = zmq.curve_keypair()
        intruder.curve_serverkey = load_public_key(daemon.locks.folder, "daemon")

    return secure


def wrong_server_key(daemon):
    def secure(intruder):
        daemon.locks.client(intruder)
        intruder.curve_serverkey = zmq.curve_keypair()[0]

    return secure


def plain_password(intruder):
    intruder.plain_username, intruder.plain_password = b"admin", b"admin"


@pytest.mark.hazard("H52")
def test_whoever_has_no_allowed_key_is_refused_logged_and_counted(tmp_path, bundle, locks):
    ingest = free_endpoint()
    daemon = Daemon(tmp_path, bundle, "--ingest-bind", ingest, locks=locks)
    stream = Stream(daemon)
    stream.goes_on()
    for name, endpoint in (("results", daemon.results), ("control", daemon.control), ("ingest", ingest)):
        for secure, reason in (
            (no_key, ""),  # of these two the client itself may break off first
            (plain_password, ""),
            (wrong_server_key(daemon), "no_or_wrong_key"),
            (unknown_key(daemon), "key_refused"),
        ):
            before = refused_count(daemon, reason, name)
            kind = zmq.SUB if name == "results" else zmq.DEALER
            connection_fails(daemon, secure, kind, endpoint)
            stream.goes_on()
            while refused_count(daemon, reason, name) == before:  # the daemon sees it a moment later
                pass
    health = daemon.ask({"htype": "get_health"})
    assert health["n_rejected"] == 0
    while "reason=key_refused" not in (log := daemon.log.read_text()):  # the daemon logs it a moment later
        daemon.ask({"htype": "get_health"})
    assert "connections refused" in log
    assert "reason=no_or_wrong_key" in log
    assert daemon.stop() == 0


@pytest.mark.hazard("H52")
def test_a_controller_that_is_not_the_one_whose_key_is_allowed_gets_no_connection(daemon, locks):
    new_key_pair(locks.folder, "impostor")
    for secure in (no_key, lambda socket_: locks.server(socket_, "impostor")):
        with daemon.context.socket(zmq.XPUB) as impostor:
            impostor.linger = 0
            secure(impostor)
            monitor = impostor.get_monitor_socket(FAILED | zmq.EVENT_HANDSHAKE_SUCCEEDED)
            bind_when_free(impostor, daemon.slices)
            assert monitor.poll(PATIENCE_MS)
            event = int.from_bytes(monitor.recv_multipart()[0][:2], "little")
            assert event != zmq.EVENT_HANDSHAKE_SUCCEEDED
            assert not impostor.poll(0)
            impostor.disable_monitor()
            monitor.close()
    assert daemon.ask({"htype": "get_health"})["n_messages"] == 0
    Stream(daemon).goes_on()  # the right one finds the daemon there


def test_a_key_sends_as_its_own_instrument_only(daemon):
    results, controller, own, other = daemon.subscribe(), daemon.controller(), Sender("m1"), Sender("m2")
    send(controller, own.start("s", 2, FIELD), other.start("t", 2, FIELD))
    send(controller, other.slice("s", 0, picture(0, FIELD), crc32=1), own.slice("s", 0, picture(0, FIELD)))
    message = results.until(n_slices=1)
    assert (message["instrument"], message["n_rejected"], message["n_lost"]) == ("m1", 0, 0)
    health = daemon.ask({"htype": "get_health"})
    counts = dict(zip(health["rejected_rule"], health["rejected_count"], strict=True))
    assert counts == {"WRONG_INSTRUMENT": 1, "CRC_MISMATCH": 1}
    assert health["n_open_stacks"] == 1


def test_only_an_operator_activates_bundles(daemon, locks):
    request = {"htype": "activate_bundle", "bundle": "tiny@1.0.0"}
    assert "--operator" in daemon.ask(request)["error"]
    allow(locks.folder, "viewer", load_public_key(locks.folder, "viewer"), "", operator=True)
    assert "--operator" not in str(daemon.ask(request))


def test_a_key_without_an_instrument_sends_no_slices(tmp_path, bundle, locks):
    daemon = Daemon(tmp_path, bundle, locks=locks, RCM_CONTROLLER_KEYS="viewer")
    with daemon.context.socket(zmq.XPUB) as controller:
        locks.server(controller, "viewer")
        controller.bind(daemon.slices)
        assert controller.poll(PATIENCE_MS)
        send(controller, Sender().start("s", 2, FIELD))
        while not (health := daemon.ask({"htype": "get_health"}))["n_rejected"]:
            assert health["ready"]
    assert health["rejected_rule"] == ["WRONG_INSTRUMENT"]
    assert daemon.stop() == 0


@pytest.mark.hazard("H54")
def test_messages_of_a_revoked_controller_are_dropped_though_its_connection_lives(daemon, locks):
    stream = Stream(daemon)
    stream.goes_on()
    revoke(locks.folder, "vendor")
    send(stream.controller, stream.sender.slice("s", 1, picture(1, FIELD)))
    while not (health := daemon.ask({"htype": "get_health"}))["n_rejected"]:
        assert health["ready"]
    assert health["rejected_rule"] == ["KEY_REVOKED"]
    assert not stream.results.socket.poll(0)
    allow(locks.folder, "vendor", load_public_key(locks.folder, "vendor"), "m1")
    send(stream.controller, stream.sender.slice("s", 2, picture(2, FIELD)))
    message = stream.results.until(n_slices=2)
    assert (message["n_lost"], message["missing_index"]) == (1, [1])
    assert "rule=key_revoked" in daemon.log.read_text()


@pytest.mark.hazard("H54")
def test_a_revoked_viewer_gets_neither_results_nor_answers(daemon, locks):
    stream = Stream(daemon)
    new_key_pair(locks.folder, "former")
    allow(locks.folder, "former", load_public_key(locks.folder, "former"), "")
    with daemon.context.socket(zmq.SUB) as former, daemon.context.socket(zmq.DEALER) as asking:
        for socket_, endpoint in ((former, daemon.results), (asking, daemon.control)):
            socket_.linger = 0
            locks.client(socket_, "former")
            socket_.connect(endpoint)
        former.subscribe(b"strata.")
        asking.send(b'{"htype": "get_health"}')
        assert asking.poll(PATIENCE_MS)
        asking.recv()
        stream.goes_on()
        assert former.poll(PATIENCE_MS)
        former.recv_multipart()
        gone = former.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        revoke(locks.folder, "former")
        assert gone.poll(PATIENCE_MS)
        for _ in range(3):
            stream.goes_on()
        asking.send(b'{"htype": "get_health"}')
        while "KEY_REVOKED" not in daemon.ask({"htype": "get_health"})["rejected_rule"]:
            pass
        assert not former.poll(0)
        assert not asking.poll(0)
        former.disable_monitor()
        gone.close()


DYING = """
    import sys
    from rcm_daemon.io.authenticator import Authenticator
    from rcm_daemon.io.allow_list import AllowList
    answer = Authenticator._answer
    def dying(self, request):
        if self._allowed.named("poison"):
            raise RuntimeError("a fault of the authenticator")
        return answer(self, request)
    Authenticator._answer = dying
    from rcm_daemon.cli import main
    main()
"""


@pytest.mark.hazard("H53")
def test_a_dead_authenticator_lets_nobody_in_and_trips_the_watchdog(tmp_path, bundle, locks, monkeypatch):
    program = tmp_path / "dying.py"
    program.write_text(textwrap.dedent(DYING))
    monkeypatch.setattr(Daemon, "program", (str(program),))
    manager = Manager(tmp_path / "notify")
    daemon = Daemon(tmp_path, bundle, locks=locks, NOTIFY_SOCKET=str(manager.path))
    stream = Stream(daemon)
    stream.goes_on()
    requester = daemon.context.socket(zmq.REQ)  # it asks over a connection from before
    locks.client(requester)
    requester.connect(daemon.control)
    requester.send(b'{"htype": "get_health"}')
    assert json.loads(requester.recv())["ready"] is True
    allow(locks.folder, "poison", zmq.curve_keypair()[0], "")
    connection_fails(daemon, daemon.locks.client)
    connection_fails(daemon, daemon.locks.client)  # and an allowed key is refused once it is dead
    stream.goes_on()
    requester.send(b'{"htype": "get_health"}')
    health = json.loads(requester.recv())
    assert health["ready"] is False
    while not sum(health["refused_count"]):  # counted, as soon as the loop has seen it
        requester.send(b'{"htype": "get_health"}')
        health = json.loads(requester.recv())
    manager.drain()
    manager.socket.settimeout(2.5)  # the loop turns once a second at least
    stream.goes_on()
    with pytest.raises(TimeoutError):
        manager.until("WATCHDOG=1")
    log = daemon.log.read_text()
    assert "the authenticator died" in log
    assert refused_in_log(log) >= 1
    requester.close(linger=0)
    manager.socket.close()
    assert daemon.stop() == 0


def refused_in_log(log):
    return sum("connections refused" in line for line in log.splitlines())


@pytest.mark.hazard("H53")
def test_a_damaged_allow_list_lets_nobody_new_in_and_is_no_reason_to_stop(daemon, locks):
    stream = Stream(daemon)
    stream.goes_on()
    whole = (locks.folder / "allowed.json").read_text()
    (locks.folder / "allowed.json").write_text(whole[:-9])
    connection_fails(daemon, daemon.locks.client)
    stream.goes_on()
    (locks.folder / "allowed.json").write_text(whole)
    assert daemon.ask({"htype": "get_health"})["ready"] is True
    assert "allow-list damaged" in daemon.log.read_text()


@pytest.mark.hazard("H55")
def test_a_flood_of_connections_does_not_disturb_the_good_stream(tmp_path, bundle, locks):
    n_open = 400
    manager = Manager(tmp_path / "notify")
    daemon = Daemon(tmp_path, bundle, locks=locks, NOTIFY_SOCKET=str(manager.path))
    resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (256, 256))
    stream = Stream(daemon)
    stream.goes_on()
    ports = [int(endpoint.rpartition(":")[2]) for endpoint in (daemon.results, daemon.control)]
    flood = []
    try:
        for number in range(n_open):
            intruder = socket.create_connection(("127.0.0.1", ports[number % 2]), 5)
            if number % 3:
                intruder.sendall(b"\xff" + bytes(8) + b"\x7f" + os.urandom(60 * (number % 3)))
            flood.append(intruder)
            if number % 40 == 0:
                stream.goes_on()
        stream.goes_on()
        manager.drain()
        manager.until("WATCHDOG=1")  # although no descriptor is left
    finally:
        for intruder in flood:
            intruder.close()
    stream.goes_on()
    assert daemon.ask({"htype": "get_health"})["n_lost"] == 0
    assert "connections refused" in daemon.log.read_text()
    assert daemon.stop() == 0
    manager.socket.close()
