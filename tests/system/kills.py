"""Kills a daemon, or its worker, at random moments of an acknowledged stream, and looks for what was lost.

`make kill N=500` runs this file; at SIGTERM it ends in good order and reports what there was until then.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from harness import Daemon, free_endpoint
from sender import picture
from tiny_bundle import FIELD, write_bundle

from rcm_daemon.bundle.sessions import Networks
from rcm_daemon.bundle.verify import load_verified
from rcm_daemon.client import Client
from rcm_daemon.core.pipeline import Estimation
from rcm_daemon.core.records import STRATA
from rcm_daemon.core.stack import EmbeddedSlice, PartialStack

N_SLICES = 12
N_PICTURES = 40
PACE_S = 0.004
WORKER_SHARE = 0.2
START_SHARE, START_S = 0.2, 1.5
"""So many of the daemon's kills hit it within so long of its start, whether it serves by then or not."""
PATIENCE_S = 120.0
MAX_JUMP = 1_000
"""More results than a stack of N_SLICES ever has between two that a subscriber sees."""


@dataclass
class KillReport:
    """What came of it; seconds from a kill to the next acknowledgement, or the next worker's first slice.

    Of the daemon's kills, `n_start_kills` came soon after its start and `n_unserved` of those before it had
    answered anything; what they cut short never served and is in no latency.
    """

    n_daemon_kills: int = 0
    n_start_kills: int = 0
    n_unserved: int = 0
    n_worker_kills: int = 0
    n_slices: int = 0
    faults: list[str] = field(default_factory=list)
    daemon_s: list[float] = field(default_factory=list)
    worker_s: list[float] = field(default_factory=list)

    @property
    def n_kills(self) -> int:
        """All of them."""
        return self.n_daemon_kills + self.n_worker_kills

    def __str__(self) -> str:
        lines = [
            f"{self.n_daemon_kills} kills of the daemon, {self.n_worker_kills} of its worker, "
            f"{self.n_slices} slices acknowledged, {len(self.faults)} faults",
            f"{self.n_start_kills} kills of the daemon came within {START_S:g} s of its start, "
            f"{self.n_unserved} of them before its first answer",
        ]
        for what, seconds in (("daemon", self.daemon_s), ("worker", self.worker_s)):
            if seconds:
                p50, p99 = np.percentile(seconds, [50, 99])
                lines.append(f"from a kill of the {what} to serving again: {p50:.2f} s p50, {p99:.2f} s p99")
        return "\n".join([*lines, *self.faults])


class Stream(threading.Thread):
    """A controller that sends stack after stack until told to stop, then waits for all answers."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(daemon=True)
        self.client = Client(endpoint, "m1", patience_s=PATIENCE_S)
        self.n_stacks = 0
        self.fault = ""
        self._stopping = threading.Event()

    def run(self) -> None:
        try:
            with self.client as client:
                while not self._stopping.is_set():
                    client.start_stack(
                        f"stack {self.n_stacks}", shape=FIELD, pixel_size_um=0.5, n_slices=N_SLICES
                    )
                    for index in range(N_SLICES):
                        image = picture((self.n_stacks + index) % N_PICTURES, FIELD)
                        client.send_slice(index, image, 3.0 * index)
                        self._stopping.wait(PACE_S)
                    client.end_stack()
                    self.n_stacks += 1
        except Exception as error:
            self.fault = f"the controller ended: {error!r}"

    def next_answer(self) -> bool:
        """Wait for an answer to a message that had none; False when none came."""
        before, give_up_s = self.client.n_acknowledged, time.monotonic() + PATIENCE_S
        while self.client.n_acknowledged == before:
            if self.fault or time.monotonic() > give_up_s:
                return False
            time.sleep(0.001)  # the time until then is what is measured
        return True

    def finish(self) -> None:
        self._stopping.set()
        self.join(2 * PATIENCE_S)


class Watcher(threading.Thread):
    """A subscriber that stays through all kills and sees whether any revision comes twice, falls or leaps."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(daemon=True)
        self.n_seen = 0
        self.faults: list[str] = []
        self._endpoint = endpoint
        self._stopping = threading.Event()

    def run(self) -> None:
        last: dict[str, tuple[int, int]] = {}  # stack -> revision, seq
        with zmq.Context() as context, context.socket(zmq.SUB) as socket:
            socket.linger, socket.reconnect_ivl = 0, 50
            socket.subscribe(b"strata.")
            socket.connect(self._endpoint)
            while not self._stopping.is_set():
                if not socket.poll(100):
                    continue
                message = json.loads(socket.recv_multipart()[1])
                new = message["revision"], message["seq"]
                before = last.get(message["stack_id"], (0, -1))
                last[message["stack_id"]] = new
                self.n_seen += 1
                # A late joiner gets the newest message again, which is the same by its seq.
                if new != before and not 0 < new[0] - before[0] < MAX_JUMP:
                    self.faults.append(f"{message['stack_id']}: revision {new[0]} after {before[0]}")

    def finish(self) -> None:
        self._stopping.set()
        self.join(PATIENCE_S)


def expected_results(bundle: Path) -> list[tuple[np.ndarray, dict[str, Any]]]:
    """What an undisturbed run gives for stacks 0 to N_PICTURES - 1; later ones repeat them.

    Probabilities, and what is read off them.
    """
    networks = Networks.open(load_verified(bundle), "cpu")
    embeddings = networks.embed_many(np.stack([picture(seed, FIELD) for seed in range(N_PICTURES)]))
    z_um, weight = np.arange(N_SLICES) * 3.0, np.ones(N_SLICES)
    places = (np.arange(N_PICTURES)[:, None] + np.arange(N_SLICES)) % N_PICTURES
    return [_read_off(networks, embeddings[row], z_um, weight) for row in places]


def _read_off(
    networks: Networks, embeddings: np.ndarray, z_um: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, dict[str, Any]]:
    slices = (
        EmbeddedSlice(i, float(z), row) for i, (z, row) in enumerate(zip(z_um, embeddings, strict=True))
    )
    given = networks.recur(embeddings, z_um, weight)
    estimate = Estimation().estimate(PartialStack(tuple(slices)), given)
    read: dict[str, Any] = {"label": [STRATA[label] for label in estimate.labels.tolist()]}
    for name, boundary in zip(("epidermis_dej", "dej_dermis"), estimate.boundaries, strict=True):
        read |= {f"{name}_found": boundary.found, f"{name}_um": boundary.um}
    return given.probabilities, read


def run_kills(folder: Path, n_kills: int, seed: int, enough: threading.Event) -> KillReport:
    """Kill so often, or until there is `enough`."""
    rng = np.random.default_rng(seed)
    bundle = folder / "bundle"
    write_bundle(bundle, kind="whole", version="1.0.0")
    endpoint, results = free_endpoint(), free_endpoint()
    options = ["--ingest-bind", endpoint, "--results-bind", results]
    report = KillReport()
    daemon = Daemon(folder, bundle, *options)
    stream, watcher = Stream(endpoint), Watcher(results)
    watcher.start()
    stream.start()
    n_told = 25
    while report.n_kills < n_kills:
        if report.n_kills >= n_told:
            print(f"{report.n_kills} kills: {report}", file=sys.stderr, flush=True)
            n_told += 25
        if enough.is_set() or not stream.next_answer():
            break
        time.sleep(rng.uniform(0.0, 0.25))
        if rng.random() < WORKER_SHARE:
            report.worker_s.append(kill_worker(daemon))
            report.n_worker_kills += 1
            continue
        killed_s = kill_daemon(daemon, report)
        daemon = Daemon(folder, bundle, *options, await_ready=False)
        while report.n_kills < n_kills and rng.random() < START_SHARE:
            n_before = stream.client.n_acknowledged
            time.sleep(rng.uniform(0.0, START_S))
            report.n_start_kills += 1
            report.n_unserved += stream.client.n_acknowledged == n_before
            killed_s = kill_daemon(daemon, report)
            daemon = Daemon(folder, bundle, *options, await_ready=False)
        if stream.next_answer():
            report.daemon_s.append(time.monotonic() - killed_s)
    if report.n_kills < n_kills and not enough.is_set():
        report.faults.append(
            f"{n_kills} kills were to be made, {report.n_kills} were: no answer came any more"
        )
    stream.finish()
    watcher.finish()
    report.faults += watcher.faults
    if not watcher.n_seen:
        report.faults.append("no result was seen")
    code = daemon.stop()
    if code != 0:
        report.faults.append(f"the daemon ended with {code}")
    _judge(report, stream, folder, expected_results(bundle))
    if report.faults:
        report.faults.append(daemon.log.read_text()[-2_000:])
    return report


def kill_daemon(daemon: Daemon, report: KillReport) -> float:
    """Return when it was killed; that it had ended before is a fault."""
    killed_s = time.monotonic()
    code = daemon.stop(signal.SIGKILL)
    if code != -signal.SIGKILL:
        report.faults.append(f"before it was killed the daemon had ended with {code}")
    report.n_daemon_kills += 1
    return killed_s


def kill_worker(daemon: Daemon) -> float:
    """Return after how many seconds the next worker had embedded a slice."""
    before = daemon.ask({"htype": "get_health"})
    killed_s = time.monotonic()
    os.kill(before["worker_pid"], signal.SIGKILL)
    n_embedded = None
    while True:
        now = daemon.ask({"htype": "get_health"})
        if now["worker_pid"] != before["worker_pid"]:
            n_embedded = now["n_cnn_runs"] if n_embedded is None else n_embedded
            if now["n_cnn_runs"] > n_embedded:
                return time.monotonic() - killed_s
        time.sleep(0.005)  # or asking would be most of what is measured


def _judge(
    report: KillReport, stream: Stream, folder: Path, expected: list[tuple[np.ndarray, dict[str, Any]]]
) -> None:
    if stream.is_alive() or stream.fault:
        report.faults.append(stream.fault or "the controller hangs")
    report.faults += [f"refused: {refusal}" for refusal in stream.client.refusals]
    command = [
        sys.executable,
        "-m",
        "rcm_daemon",
        "stacks",
        "--state-dir",
        str(folder / "state"),
        "--json",
        "-",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    results = {message["stack_id"]: message for message in map(json.loads, done.stdout.splitlines())}
    report.n_slices = sum(message["n_slices"] for message in results.values())
    if len(results) != stream.n_stacks:
        report.faults.append(
            f"{stream.n_stacks} stacks were sent and acknowledged, {len(results)} have results"
        )
    for number in range(stream.n_stacks):
        message = results.get(f"stack {number}")
        if message is None:
            report.faults.append(f"stack {number} has no result")
            continue
        found = {
            key: message[key]
            for key in ("state", "acquisition", "n_missing", "n_lost", "n_rejected", "index")
        }
        wanted = {
            "state": "complete",
            "acquisition": 1,
            "n_missing": 0,
            "n_lost": 0,
            "n_rejected": 0,
            "index": list(range(N_SLICES)),
        }
        if found != wanted:
            report.faults.append(f"stack {number}: {found}")
            continue
        probabilities, read = expected[number % N_PICTURES]
        if np.abs(np.array(message["probability"]) - probabilities).max() > 1e-6:
            report.faults.append(f"stack {number} has other probabilities than an undisturbed run")
        if {key: message[key] for key in read} != read:
            report.faults.append(f"stack {number} has other labels or boundaries than an undisturbed run")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        terminated = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: terminated.set())
        print(outcome := run_kills(Path(name), int(sys.argv[1]), time.time_ns(), terminated))
    sys.exit(bool(outcome.faults))
