"""Frames and messages too large for any daemon."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import zmq
from harness import PATIENCE_MS, Daemon, free_endpoint
from raw_peer import RawPeer
from sender import Sender, picture
from tiny_bundle import FIELD

from rcm_daemon.core.wire import MAX_SLICE_BYTES

GIB = 1 << 30


def memory_bytes(process):
    text = Path(f"/proc/{process.pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) * 1024


@pytest.mark.hazard("H07")
@pytest.mark.parametrize(("kind", "word"), [(b"PUB", "sub"), (b"PUSH", "pull")])
def test_an_announced_frame_of_gigabytes_ends_its_connection(tmp_path, bundle, kind, word):
    daemon = Daemon(tmp_path, bundle, "--slices-socket", word)
    before = memory_bytes(daemon.process)
    peer = RawPeer(daemon.slices, kind)
    peer.announce(10 * GIB)
    assert peer.is_sent_away()
    peer.close()
    assert memory_bytes(daemon.process) - before < GIB // 16
    results = daemon.subscribe()
    controller = daemon.controller(zmq.PUSH if word == "pull" else zmq.XPUB)
    controller.send_multipart(Sender().slice("s", 0, picture(0, FIELD)))
    assert results.until(n_slices=1)["n_lost"] == 0
    assert daemon.stop() == 0


@pytest.mark.hazard("H07")
@pytest.mark.parametrize(
    ("which", "n_bytes"), [("control", 65 * 1024), ("results", 65 * 1024), ("ingest", MAX_SLICE_BYTES + 1)]
)
def test_a_frame_longer_than_any_served_ends_its_connection(tmp_path, bundle, which, n_bytes):
    ingest = free_endpoint()
    daemon = Daemon(tmp_path, bundle, "--ingest-bind", ingest)
    endpoint = {"control": daemon.control, "results": daemon.results, "ingest": ingest}[which]
    before = memory_bytes(daemon.process)
    with daemon.context.socket(zmq.XSUB if which == "results" else zmq.DEALER) as asking:
        asking.linger = 0
        gone = asking.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        asking.connect(endpoint)
        asking.send(b"\x01" + bytes(n_bytes - 1))
        assert gone.poll(PATIENCE_MS)
        asking.disable_monitor()
        gone.close()
    assert memory_bytes(daemon.process) - before < GIB // 16
    assert daemon.ask({"htype": "get_health"})["ready"]
    assert daemon.stop() == 0


@pytest.mark.hazard("H08")
def test_a_multipart_bomb_ends_in_a_restart_that_has_lost_nothing_acknowledged(tmp_path, bundle):
    """The test stands for the unit's MemoryMax: as the kernel would, it kills who exceeds a limit."""
    ingest = free_endpoint()
    options = ("--ingest-bind", ingest)
    daemon = Daemon(tmp_path, bundle, *options)
    sender = Sender()
    with daemon.context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.sndhwm = 0
        dealer.connect(ingest)
        for frames in (
            sender.start("s", 9, FIELD),
            *(sender.slice("s", i, picture(i, FIELD)) for i in range(3)),
        ):
            dealer.send_multipart(frames)
        for _ in range(4):
            assert dealer.poll(PATIENCE_MS)
            assert json.loads(dealer.recv())["status"] == "stored"
        dealer.send_multipart([b"{}"] + [bytes(1 << 20)] * 1_000, copy=False)
        while memory_bytes(daemon.process) < GIB // 4:
            pass
        daemon.process.kill()
        daemon.process.wait()
    daemon.context.destroy(linger=0)
    again = Daemon(tmp_path, bundle, *options)
    stacks = []
    while not stacks or stacks[0]["n_slices"] != 3:  # it is labelled again first
        stacks = again.ask({"htype": "get_state"})["stacks"]
    (stack,) = stacks
    assert (stack["stack_id"], stack["index"], stack["state"]) == ("s", [0, 1, 2], "open")
    assert again.stop() == 0
