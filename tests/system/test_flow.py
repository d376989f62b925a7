"""Load, slow subscribers, reconnections, clocks that jump and folders that cannot be written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zmq
from faults.sitecustomize import HANG_ONCE
from harness import PATIENCE_MS, Daemon, free_endpoint
from sender import Sender, picture
from tiny_bundle import FIELD

from rcm_daemon.client import Client
from rcm_daemon.io.sockets import RESULTS_QUEUED

FAULTS = str(Path(__file__).parents[1] / "faults")


def n_descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def n_threads(pid):
    return len(os.listdir(f"/proc/{pid}/task"))


@pytest.mark.hazard("H32")
def test_deadlines_hold_while_the_wall_clock_jumps(tmp_path, bundle):
    """An hour forward and an hour back, with a stack open, a time-out of 60 s, and a worker that hangs."""
    clock = tmp_path / "clock"
    environment = {"PYTHONPATH": FAULTS, "FAULTS": str(tmp_path), "CLOCK": str(clock)}
    daemon = Daemon(tmp_path, bundle, RCM_IDLE_TIMEOUT_S="60", RCM_SLICE_TIMEOUT_S="1", **environment)
    results, controller, sender = daemon.subscribe(), daemon.controller(), Sender()
    times = []
    for index, shift_s in enumerate((0, 3_600, -3_600)):
        clock.write_text(str(shift_s))
        image = picture(index, FIELD)
        image[0, 0] = HANG_ONCE if index == 1 else 0
        controller.send_multipart(sender.slice("a", index, image))
        message = results.until(n_slices=index + 1)
        assert (message["state"], message["n_rejected"], message["acquisition"]) == ("open", 0, 1)
        times.append(message["time_s"])
    assert times[1] - times[0] > 3_500
    assert times[2] - times[0] < -3_500
    assert daemon.ask({"htype": "get_health"})["n_worker_restarts"] == 1
    assert daemon.stop() == 0


class Deaf:
    """Two subscribers that do not read: one whose process is stopped, one that has not taken a result yet.

    The stopped one is let go once heartbeats go unanswered. The other sends heartbeats of its own, and so
    stays, with its queue full.
    """

    def __init__(self, daemon):
        command = [sys.executable, "-m", "rcm_daemon", "watch", daemon.results]
        self._stopped = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._socket = daemon.context.socket(zmq.SUB)
        daemon.sockets.append(self._socket)
        self._socket.linger, self._socket.rcvhwm = 0, 1
        self._socket.heartbeat_ivl, self._socket.heartbeat_timeout = 100, 600_000
        self._socket.subscribe(b"strata.")
        self._socket.connect(daemon.results)

    def stop_reading(self):
        """Return once both have been sent something: their subscriptions are in force."""
        assert self._stopped.stdout.readline()
        self._stopped.send_signal(signal.SIGSTOP)
        assert self._socket.poll(PATIENCE_MS)

    def next_seq(self):
        assert self._socket.poll(PATIENCE_MS), "no result came"
        return json.loads(self._socket.recv_multipart()[1])["seq"]

    def leave(self):
        self._socket.close()
        self._stopped.kill()
        self._stopped.wait()
        self._stopped.stdout.close()


@pytest.mark.hazard("H38")
@pytest.mark.timeout(600)
def test_subscribers_that_do_not_read_cost_nothing(tmp_path, bundle):
    """With their queue overflowing and, in turns, without them; another subscriber reads all results."""
    n_rounds, n_slices, n_repeats = 4, 60, 50
    endpoint = free_endpoint()
    daemon = Daemon(tmp_path, bundle, "--ingest-bind", endpoint)
    reads = daemon.subscribe()
    stack = {"shape": FIELD, "pixel_size_um": 0.5, "n_slices": n_slices}

    def send_stack(name):
        """Each slice once the last one's result has come; gives `total_ms` and how long that took in all."""
        client.start_stack(name, **stack)
        latencies_ms = []
        for index in range(n_slices):
            image = picture(index, FIELD)
            sent_s = time.monotonic()
            client.send_slice(index, image, 3.0 * index)
            total_ms = reads.until(stack_id=name, n_slices=index + 1)["total_ms"]
            latencies_ms.append((total_ms, 1e3 * (time.monotonic() - sent_s)))
        client.end_stack()
        client.wait()
        final = reads.until(stack_id=name, state="complete")
        assert (final["n_slices"], final["n_lost"]) == (n_slices, 0)
        return latencies_ms

    def overflow(name):
        """Publish more than twice what is queued: the last slice again and again, each time a new result."""
        for index in range(n_slices):
            client.send_slice(index, picture(index, FIELD), 3.0 * index)
        client.wait()
        first = reads.until(stack_id=name, n_slices=n_slices)["seq"]
        last = first
        while last - first <= 2 * RESULTS_QUEUED:
            for _ in range(n_repeats):
                client.send_slice(n_slices - 1, picture(n_slices - 1, FIELD), 3.0 * (n_slices - 1))
            client.wait()
            last = reads.until(seq=last + n_repeats)["seq"]
        return last - first

    without_ms, with_ms = [], []
    with Client(endpoint, "m1") as client:
        send_stack("first")
        for number in range(n_rounds):
            without_ms += send_stack(f"without {number}")
            deaf = Deaf(daemon)
            client.start_stack(f"overflow {number}", **stack)
            deaf.stop_reading()
            assert overflow(f"overflow {number}") > RESULTS_QUEUED
            with_ms += send_stack(f"with {number}")
            # All that was queued it gets in the end, and of what came later only what is new.
            kept = [deaf.next_seq() for _ in range(RESULTS_QUEUED)]
            assert kept == list(range(kept[0], kept[0] + RESULTS_QUEUED))
            send_stack(f"after {number}")
            last = kept[-1]
            while (seq := deaf.next_seq()) == last + 1:
                last = seq
            assert seq > last + 1
            deaf.leave()
    assert client.refusals == []
    health = daemon.ask({"htype": "get_health"})
    assert (health["n_cnn_runs"], health["n_waiting"]) == ((1 + 4 * n_rounds) * n_slices, 0)
    usual_ms, burdened_ms = np.median(without_ms, axis=0), np.median(with_ms, axis=0)
    assert (burdened_ms <= 1.5 * usual_ms + 2.0).all(), (usual_ms, burdened_ms)
    assert daemon.stop() == 0


@pytest.mark.hazard("H39")
def test_a_publisher_faster_than_inference_has_its_gaps_counted(tmp_path, bundle):
    """With the worker hanging, a publisher with a short queue loses slices; every loss is reported."""
    environment = {"PYTHONPATH": FAULTS, "FAULTS": str(tmp_path), "RCM_MAX_SLICES_WAITING": "2"}
    daemon = Daemon(tmp_path, bundle, RCM_SLICE_TIMEOUT_S="3", **environment)
    results, sender = daemon.subscribe(), Sender()
    controller = daemon.context.socket(zmq.XPUB)
    daemon.sockets.append(controller)
    controller.linger = 1_000
    controller.sndhwm = 2
    controller.bind(daemon.slices)
    assert controller.poll(PATIENCE_MS)
    shape, n = (1_000, 1_000), 60
    image = np.zeros(shape, np.uint8)
    image[488, 484] = HANG_ONCE  # the corner of the field cut from its centre
    controller.send_multipart(sender.start("s", n, shape))
    controller.send_multipart(sender.slice("s", 0, image))
    results.until(n_slices=0)
    for index in range(1, n):
        controller.send_multipart(sender.slice("s", index, picture(index, shape)))
    final, end = {"state": "open"}, sender.end("s", n)
    while final["state"] == "open":  # the end may be lost as well
        controller.send_multipart(end)
        while final["state"] == "open" and results.socket.poll(1_000):
            final = results.next()
    assert final["n_missing"] > 0
    assert final["n_slices"] + final["n_missing"] == n
    assert final["n_lost"] == final["n_missing"]
    assert (final["state"], final["n_rejected"]) == ("incomplete", 0)
    assert daemon.stop() == 0


@pytest.mark.hazard("H37")
@pytest.mark.timeout(600)
def test_a_thousand_reconnections_leave_nothing_behind(tmp_path, bundle):
    endpoint = free_endpoint()
    daemon = Daemon(tmp_path, bundle, "--ingest-bind", endpoint)
    pid = daemon.process.pid

    def reconnect(times):
        for number in range(times):
            with Client(endpoint, "m1", run_id=f"{times}-{number}") as client:
                client.start_stack("s", shape=FIELD, pixel_size_um=0.5)
            with daemon.context.socket(zmq.SUB) as subscriber:
                subscriber.linger = 0
                subscriber.subscribe(b"strata.")
                subscriber.connect(daemon.results)
                assert subscriber.poll(PATIENCE_MS)

    reconnect(20)
    before = n_descriptors(pid), n_threads(pid)
    reconnect(500)
    assert n_threads(pid) == before[1]
    assert n_descriptors(pid) <= before[0] + 8  # connections that are being closed
    assert daemon.stop() == 0


@pytest.mark.hazard("H34")
def test_a_state_folder_that_is_read_only_keeps_the_daemon_from_being_ready(tmp_path, bundle):
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(0o500)
    command = [
        sys.executable,
        "-m",
        "rcm_daemon",
        "serve",
        "--state-dir",
        str(state),
        "--bundle",
        str(bundle),
    ]
    if os.geteuid() == 0:  # root may write anywhere, unless it has given that up
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            pytest.skip("as root this needs setpriv")
        command = [setpriv, "--bounding-set", "-dac_override", "--", *command]
    endpoints = ["--results-bind", free_endpoint(), "--control-bind", free_endpoint()]
    done = subprocess.run([*command, *endpoints], capture_output=True, text=True, timeout=60, check=False)
    state.chmod(0o700)
    assert done.returncode == 78
    assert "cannot be written" in done.stderr
    assert "ready" not in done.stderr


@pytest.mark.hazard("H30")
def test_a_second_daemon_leaves_the_journal_alone(tmp_path, bundle):
    endpoint = free_endpoint()
    daemon = Daemon(tmp_path, bundle, "--ingest-bind", endpoint)
    with Client(endpoint, "m1") as client:
        client.start_stack("s", shape=FIELD, pixel_size_um=0.5)
        client.send_slice(0, picture(0, FIELD), 0.0)
        client.wait()
        command = [sys.executable, "-m", "rcm_daemon", "serve", "--state-dir", str(tmp_path / "state")]
        second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert second.returncode == 78
        client.send_slice(1, picture(1, FIELD), 3.0)
        client.wait()
        daemon.kill()
        daemon = Daemon(tmp_path, bundle, "--ingest-bind", endpoint)
        client.end_stack()
    assert client.refusals == []
    state = daemon.ask({"htype": "get_state", "stack_id": "s"})["stacks"][0]
    assert (state["state"], state["n_slices"]) == ("complete", 2)
    assert daemon.stop() == 0
