"""Acknowledged ingest on the real daemon: restarts, full disks, credit, half-open connections."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zmq
from faults.sitecustomize import HANG_ONCE
from harness import PATIENCE_MS, Daemon, Locks, free_endpoint
from proxy import Proxy
from raw_peer import RawPeer
from sender import Sender, picture
from tiny_bundle import FIELD

from rcm_daemon.bundle.sessions import Networks
from rcm_daemon.bundle.verify import load_verified
from rcm_daemon.client import Client
from rcm_daemon.io.allow_list import allow, revoke
from rcm_daemon.io.keys import load_public_key, new_key_pair

FAULTS = str(Path(__file__).parents[1] / "faults")


@pytest.fixture
def endpoint():
    return free_endpoint()


@pytest.fixture
def daemon(tmp_path, bundle, endpoint):
    daemon = Daemon(tmp_path, bundle, "--ingest-bind", endpoint)
    yield daemon
    assert daemon.stop() == 0


@pytest.fixture
def peer(daemon, endpoint):
    """A DEALER as another language would have it."""
    peer = daemon.context.socket(zmq.DEALER)
    daemon.sockets.append(peer)
    peer.linger = 0
    peer.connect(endpoint)
    return peer


def ask(peer, frames):
    peer.send_multipart(frames)
    assert peer.poll(PATIENCE_MS), "no answer came"
    (answer,) = peer.recv_multipart()
    return json.loads(answer)


def send_stack(client, stack_id="s", n=10, first=0):
    client.start_stack(stack_id, shape=FIELD, pixel_size_um=0.5, n_slices=n)
    for index in range(n):
        client.send_slice(index, picture(first + index, FIELD), 3.0 * index)
    client.end_stack()


def test_every_message_is_answered_as_the_wire_says(peer):
    sender = Sender()
    start = ask(peer, sender.start("s", 3, FIELD))
    assert start == {
        "htype": "ack",
        "schema": "rcm-ack-1",
        "instrument": "m1",
        "run_id": "run-1",
        "msg_number": 0,
        "of": "stack_start",
        "stack_id": "s",
        "index": -1,
        "status": "stored",
        "error": "",
        "credit": 16,
    }
    frames = sender.slice("s", 0, picture(0, FIELD))
    assert [ask(peer, frames)["status"] for _ in range(2)] == ["stored", "duplicate"]
    other = ask(peer, sender.slice("s", 0, picture(1, FIELD)))
    assert (other["status"], other["index"]) == ("conflict", 0)
    spoilt = ask(peer, sender.slice("s", 1, picture(1, FIELD), crc32=1))
    assert (spoilt["status"], spoilt["index"], spoilt["of"]) == ("rejected", 1, "slice")
    assert spoilt["error"].startswith("R114 crc_mismatch: slice 1 of 's'")
    assert ask(peer, sender.heartbeat("s"))["of"] == "heartbeat"
    assert ask(peer, sender.end("s", 2))["of"] == "stack_end"
    nonsense = ask(peer, [b"nonsense"])
    assert (nonsense["status"], nonsense["msg_number"], nonsense["of"]) == ("rejected", -1, "")
    old = ask(peer, Sender(run_id="run-2").start("t"))
    assert old["status"] == "stored"
    late = ask(peer, sender.slice("s", 2, picture(2, FIELD)))
    assert late["error"].startswith("R201 old_run")


@pytest.mark.hazard("H56")
def test_messages_of_an_older_run_are_refused_and_repeats_are_answered_as_such(peer):
    old, new = Sender(run_id="a"), Sender(run_id="b")
    first = old.slice("s", 0, picture(0, FIELD))
    assert ask(peer, first)["status"] == "stored"
    assert ask(peer, first)["status"] == "duplicate"
    assert ask(peer, new.slice("s", 1, picture(1, FIELD)))["status"] == "stored"
    assert ask(peer, first)["error"].startswith("R201 old_run")
    assert ask(peer, new.slice("s", 0, picture(0, FIELD)))["status"] == "duplicate"


@pytest.mark.hazard("H26")
@pytest.mark.hazard("H50")
def test_a_stack_killed_half_way_goes_on_as_if_nothing_had_been(tmp_path, bundle, endpoint):
    networks = Networks.open(load_verified(bundle), "cpu")
    images = np.stack([picture(i, FIELD) for i in range(10)])
    expected = networks.label(networks.embed_many(images), np.arange(10) * 3.0, np.ones(10))
    daemon = Daemon(tmp_path, bundle, "--ingest-bind", endpoint)
    with Client(endpoint, "m1") as client:
        client.start_stack("s", shape=FIELD, pixel_size_um=0.5, n_slices=10)
        for index in range(10):
            client.send_slice(index, images[index], 3.0 * index)
            if index == 5:
                client.wait()
                before = daemon.ask({"htype": "get_state", "stack_id": "s"})["stacks"][0]
                daemon.kill()
                daemon = Daemon(tmp_path, bundle, "--ingest-bind", endpoint)
                results = daemon.subscribe()
                again = results.until(n_slices=6)
                for key in ("index", "label", "probability", "acquisition", "bundle_digest", "n_lost"):
                    assert again[key] == before[key], key
                assert again["revision"] == before["revision"] + 1
                assert again["seq"] > before["seq"]
        client.end_stack()
    final = results.until(state="complete")
    assert client.refusals == []
    assert np.abs(np.array(final["probability"]) - expected).max() < 1e-6
    assert (final["n_lost"], final["n_missing"], final["n_rejected"]) == (0, 0, 0)
    assert daemon.ask({"htype": "get_health"})["n_cnn_runs"] == 4
    assert daemon.stop() == 0


@pytest.mark.hazard("H28")
def test_revisions_go_on_by_one_over_a_clean_restart(tmp_path, bundle, endpoint):
    revisions = []
    sender = Sender()
    for index in range(3):
        daemon = Daemon(tmp_path, bundle)
        results, controller = daemon.subscribe(), daemon.controller()
        controller.send_multipart(sender.slice("s", index, picture(index, FIELD)))
        revisions.append(results.until(n_slices=index + 1)["revision"])
        assert daemon.stop() == 0
    assert revisions == [1, 3, 5]  # each restart publishes the restored stack once


@pytest.mark.hazard("H26")
def test_revisions_go_on_by_one_though_nothing_of_the_stack_was_on_disk(tmp_path, bundle):
    """Killed while the disk is full: the stack begins anew, its numbers do not."""
    daemon = Daemon(tmp_path, bundle)
    results, controller, sender = daemon.subscribe(), daemon.controller(), Sender()
    # The limit goes for memory shared with the worker too: it has its size after a slice.
    controller.send_multipart(sender.slice("before", 0, picture(0, FIELD)))
    results.until(n_slices=1)
    n_bytes = (tmp_path / "state/journal.db-wal").stat().st_size
    resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (n_bytes, -1))
    for index in range(4):
        controller.send_multipart(sender.slice("s", index, picture(index, FIELD)))
        assert results.until(stack_id="s", n_slices=index + 1)["revision"] == index + 1
    daemon.kill()
    daemon = Daemon(tmp_path, bundle)
    assert daemon.ask({"htype": "get_state", "stack_id": "s"})["stacks"] == []
    results, controller = daemon.subscribe(), daemon.controller()
    controller.send_multipart(sender.slice("s", 4, picture(4, FIELD)))
    message = results.until(stack_id="s", n_slices=1)
    assert (message["revision"], message["acquisition"], message["missing_index"]) == (5, 1, [0, 1, 2, 3])
    assert daemon.stop() == 0


@pytest.mark.hazard("H33")
def test_full_disk_stops_acknowledgements_and_nothing_else_until_there_is_room(tmp_path, bundle, endpoint):
    daemon = Daemon(tmp_path, bundle, "--ingest-bind", endpoint)
    results, controller, sender = daemon.subscribe(), daemon.controller(), Sender("m2")
    client = Client(endpoint, "m1")
    client.start_stack("s", shape=FIELD, pixel_size_um=0.5)
    client.send_slice(0, picture(0, FIELD), 0.0)
    client.wait()
    # No file may grow beyond what the journal's log has now: the log of messages is shorter.
    limits = resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE)
    n_bytes = (tmp_path / "state/journal.db-wal").stat().st_size
    assert n_bytes > 10_000
    resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    client.send_slice(1, picture(1, FIELD), 3.0)
    assert results.until(instrument="m1", n_slices=2)["state"] == "open"
    controller.send_multipart(sender.slice("other", 0, picture(2, FIELD)))
    assert results.until(instrument="m2")["n_slices"] == 1
    while not (health := daemon.ask({"htype": "get_health"}))["journal_fault"]:
        pass
    assert (health["ready"], health["state"]) == (False, "not recording")
    assert client.n_unanswered == 1
    resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, limits)
    client.wait()
    health = daemon.ask({"htype": "get_health"})
    assert (health["ready"], health["journal_fault"]) == (True, "")
    daemon.kill()
    daemon = Daemon(tmp_path, bundle, "--ingest-bind", endpoint)
    state = daemon.subscribe().until(instrument="m1", n_slices=2)
    assert state["n_lost"] == 0
    client.close()
    assert "the journal cannot be written" in daemon.log.read_text()
    assert daemon.stop() == 0


@pytest.mark.hazard("H39")
def test_credit_stalls_the_sender_while_inference_hangs(tmp_path, bundle, endpoint):
    options = ["--ingest-bind", endpoint]
    environment = {"RCM_SLICE_TIMEOUT_S": "2", "PYTHONPATH": FAULTS, "FAULTS": str(tmp_path)}
    daemon = Daemon(tmp_path, bundle, *options, RCM_INGEST_CREDIT="5", **environment)
    most = 0
    with Client(endpoint, "m1") as client:
        client.start_stack("s", shape=FIELD, pixel_size_um=0.5)
        for index in range(20):
            image = picture(index, FIELD)
            image[0, 0] = HANG_ONCE if index == 3 else 0
            client.send_slice(index, image, 3.0 * index)
            most = max(most, client.n_unanswered)
        client.end_stack()
    assert most == 5
    assert client.refusals == []
    assert daemon.ask({"htype": "get_health"})["n_worker_restarts"] == 1
    assert daemon.stop() == 0


@pytest.mark.hazard("H51")
def test_a_half_open_connection_is_seen_by_its_heartbeats(daemon, endpoint, monkeypatch):
    monkeypatch.setattr("rcm_daemon.client.SILENCE_S", 1e9)  # that nothing is answered is not what shows it
    proxy = Proxy(endpoint)
    with Client(proxy.endpoint, "m1") as client:
        client.start_stack("s", shape=FIELD, pixel_size_um=0.5)
        client.wait()
        proxy.freeze()
        for index in range(5):
            client.send_slice(index, picture(index, FIELD), 3.0 * index)
        client.end_stack()
    assert proxy.n_connections >= 2
    assert client.refusals == []
    assert daemon.ask({"htype": "get_state", "stack_id": "s"})["stacks"][0]["state"] == "complete"
    proxy.close()


@pytest.mark.hazard("H50")
def test_a_sender_with_heartbeats_may_vanish_while_its_messages_wait(tmp_path, bundle, endpoint):
    """Nothing is read while the worker hangs. What waits then has a heartbeat in it whose sender is gone."""
    environment = {"RCM_SLICE_TIMEOUT_S": "3", "PYTHONPATH": FAULTS, "FAULTS": str(tmp_path)}
    daemon = Daemon(tmp_path, bundle, "--ingest-bind", endpoint, RCM_MAX_SLICES_WAITING="1", **environment)
    image, sender = picture(0, FIELD), Sender()
    image[0, 0] = HANG_ONCE
    peer = RawPeer(endpoint, b"DEALER")
    peer.send(sender.slice("s", 0, image))
    while not daemon.ask({"htype": "get_health"})["n_waiting"]:
        pass
    starts = [sender.start(f"s{number}", 9, FIELD) for number in range(16)]
    peer.send(None, *starts, None)  # in less than libzmq reads at a time
    peer.await_pong()
    peer.vanish()
    while daemon.ask({"htype": "get_health"})["n_messages"] < 17:
        pass
    assert daemon.ask({"htype": "get_health"})["n_worker_restarts"] == 1
    assert daemon.stop() == 0


@pytest.mark.hazard("H50")
def test_a_daemon_that_is_merely_slow_is_given_the_time_to_answer(daemon, endpoint, monkeypatch):
    """What is answered comes later than a heartbeat may, over every connection."""
    monkeypatch.setattr("rcm_daemon.client.HEARTBEAT_MS", 20)
    proxy = Proxy(endpoint)
    proxy.delay_s = 0.1
    with Client(proxy.endpoint, "m1") as client:
        send_stack(client, n=3)
    assert proxy.n_connections >= 2
    assert client.refusals == []
    assert daemon.ask({"htype": "get_state", "stack_id": "s"})["stacks"][0]["state"] == "complete"
    proxy.close()


@pytest.mark.hazard("H52")
def test_with_keys_the_client_gets_in_as_its_own_instrument_only(tmp_path, bundle, endpoint):
    locks = Locks(tmp_path / "keys")
    daemon = Daemon(tmp_path, bundle, "--ingest-bind", endpoint, locks=locks)
    with Client(endpoint, "m1", secure=lambda socket: locks.client(socket, "vendor")) as client:
        send_stack(client)
    assert client.refusals == []
    with Client(endpoint, "m9", secure=lambda socket: locks.client(socket, "vendor")) as other:
        other.start_stack("s", shape=FIELD, pixel_size_um=0.5)
    assert "wrong_instrument" in other.refusals[0].error
    assert daemon.stop() == 0


@pytest.mark.hazard("H54")
def test_a_controller_revoked_while_connected_stores_nothing_more(tmp_path, bundle, endpoint):
    locks = Locks(tmp_path / "keys")
    new_key_pair(locks.folder, "other")
    allow(locks.folder, "other", load_public_key(locks.folder, "other"), "m2")
    daemon = Daemon(tmp_path, bundle, "--ingest-bind", endpoint, locks=locks)
    peers = {}
    for name in ("vendor", "other"):
        peers[name] = daemon.context.socket(zmq.DEALER)
        daemon.sockets.append(peers[name])
        locks.client(peers[name], name)
        peers[name].connect(endpoint)
    revoked, good = Sender("m1"), Sender("m2")
    assert ask(peers["vendor"], revoked.slice("s", 0, picture(0, FIELD)))["status"] == "stored"
    revoke(locks.folder, "vendor")
    answer = ask(peers["vendor"], revoked.slice("s", 1, picture(1, FIELD)))
    assert (answer["status"], answer["msg_number"]) == ("rejected", -1)
    assert answer["error"].startswith("R401 key_revoked")
    for index in range(3):
        assert ask(peers["other"], good.slice("t", index, picture(index, FIELD)))["status"] == "stored"
    stacks = {s["instrument"]: s for s in daemon.ask({"htype": "get_state", "stack_id": ""})["stacks"]}
    assert (stacks["m1"]["index"], stacks["m1"]["n_rejected"]) == ([0], 0)
    assert (stacks["m2"]["n_lost"], stacks["m2"]["n_rejected"]) == (0, 0)
    assert daemon.stop() == 0


def test_the_simulated_microscope_sends_acknowledged(daemon, endpoint):
    words = ["simulate", "phantom", "--transport", "dealer", "--connect", endpoint, "--fps", "200"]
    words += ["--size", "64", "--pixel-size-um", "1", "--z-step-um", "5", "--stacks", "2", "--seed", "3"]
    command = [sys.executable, "-m", "rcm_daemon", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.count("slices sent") == 2
    for seed in (3, 4):
        state = daemon.ask({"htype": "get_state", "stack_id": f"phantom-{seed}"})["stacks"][0]
        assert (state["state"], state["n_lost"], state["n_rejected"]) == ("complete", 0, 0)


def test_stacks_are_listed_and_exported_while_the_daemon_runs_and_after(daemon, endpoint, tmp_path):
    def stacks(*words):
        command = [
            sys.executable,
            "-m",
            "rcm_daemon",
            "stacks",
            "--state-dir",
            str(tmp_path / "state"),
            *words,
        ]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with Client(endpoint, "m1") as client:
        send_stack(client, "one", 4)
        send_stack(client, "two", 3)
        client.start_stack("three", shape=FIELD, pixel_size_um=0.5)
        client.send_slice(0, picture(0, FIELD), 0.0)
    lines = stacks().splitlines()
    assert [line.split()[1:5] for line in lines[1:]] == [
        ["one", "1", "complete", "4"],
        ["two", "1", "complete", "3"],
        ["three", "1", "open", "1"],
    ]
    daemon.process.send_signal(signal.SIGTERM)
    daemon.process.wait(30)
    (message,) = map(json.loads, stacks("--json", "-", "--stack", "two").splitlines())
    assert (message["stack_id"], message["state"], message["n_slices"]) == ("two", "complete", 3)
    rows = stacks("--csv", "-", "--stack", "one").splitlines()
    assert rows[0].startswith("instrument,acquisition,stack_id,index,z_um,label,")
    assert [row.split(",")[:5] for row in rows[1:]] == [
        ["m1", "1", "one", str(i), str(3.0 * i)] for i in range(4)
    ]


def test_stacks_without_a_journal(tmp_path):
    command = [sys.executable, "-m", "rcm_daemon", "stacks", "--state-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (78, 1)
