"""The highest rate a daemon sustains, for minutes: memory, descriptors, and every loss accounted for.

`make soak MINUTES=30` runs this file. Two instruments send over acknowledged ingest as fast as they are
allowed to, one publishes at 10 frames a second; one subscriber comes and goes all the time, one never
reads. The daemon runs the default bundle on slices of 1000 x 1000.

Every SAMPLE_EVERY_S all senders rest until nothing is in flight, and memory is measured: in between it holds
tens of slices of 1 MB, more or fewer from one moment to the next. The warm-up is as long as it takes until
all that is bounded has been filled once: final messages of 100 ended stacks above all, and what is known of
the ended stacks of every instrument, for which the first ones are stacks of a single slice.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zmq
from harness import Daemon, free_endpoint
from sender import Sender
from soak_samples import Gate, Growth, Sample, growth, largest_step

from rcm_daemon.bundle.location import default_bundle_path
from rcm_daemon.client import Client
from rcm_daemon.io.heap import QUIET_S

if TYPE_CHECKING:
    from collections.abc import Iterator

SHAPE = (1_000, 1_000)
N_PICTURES = 8
N_SLICES = 40
N_SHORT_STACKS = 400
PUBLISHED_FPS = 10.0
SAMPLE_EVERY_S = 10.0
WARM_UP_MINUTES, LONGEST_WARM_UP_SHARE = 10.0, 1 / 3
MAX_GROWTH_MB_AN_HOUR = 1.0
MAX_MORE_DESCRIPTORS = 3
PATIENCE_S = 120.0


@dataclass
class SoakReport:
    """What was measured; memory after warm-up, at rest."""

    minutes: float
    n_slices: int = 0
    fps: float = 0.0
    samples: list[Sample] = field(default_factory=list)
    n_lost_reported: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def warm_up_s(self) -> float:
        """What comes before this is not looked at."""
        return 60 * min(WARM_UP_MINUTES, LONGEST_WARM_UP_SHARE * self.minutes)

    @property
    def steady(self) -> list[Sample]:
        """The samples after the warm-up."""
        return [sample for sample in self.samples if sample.time_s >= self.warm_up_s]

    @property
    def growth(self) -> Growth:
        """Of daemon and worker together."""
        return growth(self.steady, lambda s: s.daemon_mb + s.worker_mb)

    @property
    def n_descriptors(self) -> tuple[int, int]:
        """The fewest in the first and in the second half: what comes and goes is none that leaks."""
        counts = [sample.n_descriptors for sample in self.steady]
        half = max(1, len(counts) // 2)
        return min(counts[:half]), min(counts[-half:])

    @property
    def is_good(self) -> bool:
        """Whether nothing is wrong, and, where it went on long enough to be told, nothing grows."""
        first, last = self.n_descriptors
        is_flat = last - first <= MAX_MORE_DESCRIPTORS
        grows = self.minutes > WARM_UP_MINUTES and self.growth.mb_an_hour >= MAX_GROWTH_MB_AN_HOUR
        return not self.faults and is_flat and not grows

    def __str__(self) -> str:
        lines = [
            f"{self.minutes:g} minutes: {self.n_slices} slices, {self.fps:.1f} a second; "
            f"{self.n_lost_reported} losses reported, {len(self.faults)} faults"
        ]
        if len(steady := self.steady) > 1:
            daemon, worker = growth(steady, lambda s: s.daemon_mb), growth(steady, lambda s: s.worker_mb)
            verdict = "met" if self.growth.mb_an_hour < MAX_GROWTH_MB_AN_HOUR else "not met"
            lines += [
                "descriptors: {}, then {}".format(*self.n_descriptors),
                f"daemon {steady[-1].daemon_mb:.1f} MB, {daemon}",
                f"worker {steady[-1].worker_mb:.1f} MB, {worker}",
                f"both {self.growth}, Theil-Sen over {len(steady)} samples at rest after "
                f"{self.warm_up_s / 60:.1f} minutes of warm-up; "
                "largest step {:+.1f} MB, at {:.0f} s; ".format(*largest_step(steady))
                + f"required: less than {MAX_GROWTH_MB_AN_HOUR:g} MB/h: {verdict}",
            ]
        return "\n".join([*lines, *self.faults])


def pictures() -> list[np.ndarray]:
    return [np.random.default_rng(seed).integers(20, 230, SHAPE, np.uint8) for seed in range(N_PICTURES)]


def lengths(minutes: float) -> Iterator[int]:
    """Slices of each stack: one in the first ones, to fill what is kept of ended stacks in the warm-up."""
    yield from repeat(1, N_SHORT_STACKS if minutes > WARM_UP_MINUTES else 0)
    yield from repeat(N_SLICES)


class Acknowledged(threading.Thread):
    """An instrument that sends as fast as it is allowed to."""

    def __init__(
        self, endpoint: str, instrument: str, stop: threading.Event, gate: Gate, lengths: Iterator[int]
    ) -> None:
        super().__init__(daemon=True)
        self._gate, self._lengths = gate, lengths
        self.client = Client(endpoint, instrument, patience_s=PATIENCE_S)
        self.n_slices, self.n_stacks = 0, 0
        self.fault = ""
        self._stop_soak = stop

    def run(self) -> None:
        images = pictures()
        try:
            with self.client as client:
                while not self._stop_soak.is_set():
                    name = f"stack {self.n_stacks}"
                    n_slices = next(self._lengths)
                    client.start_stack(name, shape=SHAPE, pixel_size_um=0.5, n_slices=n_slices)
                    for index in range(n_slices):
                        self._gate.pass_by(client.wait)
                        client.send_slice(index, images[index % N_PICTURES], 3.0 * index)
                        self.n_slices += 1
                    client.end_stack()
                    self.n_stacks += 1
        except Exception as error:
            self.fault = f"{self.client.instrument} ended: {error!r}"


class Published(threading.Thread):
    """An instrument that publishes at its own rate; what a full queue does not take is lost.

    It plans no number of slices, so that a result with one says that the stack's end has come.
    """

    def __init__(self, daemon: Daemon, stop: threading.Event, gate: Gate, lengths: Iterator[int]) -> None:
        super().__init__(daemon=True)
        self._gate, self._lengths = gate, lengths
        self._socket = daemon.controller()
        self._sender = Sender("published")
        self.n_slices: dict[str, int] = {}
        self.fault = ""
        self._stop_soak = stop

    @property
    def n_sent(self) -> int:
        """Numbered messages."""
        return self._sender.next_number

    def tell_number(self) -> None:
        """Say how many messages there were, or the loss of the last ones could not be known."""
        self._socket.send_multipart(self._sender.heartbeat())

    def run(self) -> None:
        try:
            self._publish()
        except Exception as error:
            self.fault = f"published ended: {error!r}"

    def _publish(self) -> None:
        images = pictures()
        due_s = time.monotonic()
        while not self._stop_soak.is_set():
            name = f"stack {len(self.n_slices)}"
            self.n_slices[name] = n_slices = next(self._lengths)
            self._socket.send_multipart(self._sender.start(name, shape=SHAPE))
            for index in range(n_slices):
                self._gate.pass_by()
                due_s = max(due_s, time.monotonic() - 1.0 / PUBLISHED_FPS)  # a rest is not made up for
                self._socket.send_multipart(self._sender.slice(name, index, images[index % N_PICTURES]))
                due_s += 1.0 / PUBLISHED_FPS
                threading.Event().wait(max(0.0, due_s - time.monotonic()))
            self._socket.send_multipart(self._sender.end(name, n_slices))


class Restless(threading.Thread):
    """A subscriber that comes, reads one result, and goes."""

    def __init__(self, daemon: Daemon, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._daemon = daemon
        self._stop_soak = stop

    def run(self) -> None:
        while not self._stop_soak.is_set():
            with self._daemon.context.socket(zmq.SUB) as socket:
                socket.linger = 0
                socket.subscribe(b"strata.")
                socket.connect(self._daemon.results)
                socket.poll(1_000)


def until_idle(daemon: Daemon) -> None:
    """Wait until all that has come is labelled, nothing more comes, and the memory for it is given back."""
    n_before, health = -1, {"n_waiting": 1, "n_messages": 0}
    while health["n_waiting"] or health["n_messages"] != n_before:
        n_before = health["n_messages"]
        threading.Event().wait(0.2)
        health = daemon.ask({"htype": "get_health"}, round(PATIENCE_S * 1e3))
    threading.Event().wait(3 * QUIET_S)


def run_soak(folder: Path, minutes: float) -> SoakReport:
    report = SoakReport(minutes)
    endpoint = free_endpoint()
    daemon = Daemon(folder, default_bundle_path(), "--ingest-bind", endpoint)
    never_reads = daemon.context.socket(zmq.SUB)
    never_reads.rcvhwm = 1
    never_reads.subscribe(b"")
    never_reads.connect(daemon.results)
    stop = threading.Event()
    gate = Gate(3)
    senders = [Acknowledged(endpoint, name, stop, gate, lengths(minutes)) for name in ("first", "second")]
    published = Published(daemon, stop, gate, lengths(minutes))
    threads = [*senders, published, Restless(daemon, stop)]
    for thread in threads:
        thread.start()
    worker = daemon.ask({"htype": "get_health"})["worker_pid"]
    begin_s = time.monotonic()
    while time.monotonic() - begin_s < 60 * minutes:
        threading.Event().wait(min(SAMPLE_EVERY_S, 10 * minutes))
        try:
            with gate.closed(PATIENCE_S):
                until_idle(daemon)
                sample = Sample.take(time.monotonic() - begin_s, daemon.process.pid, worker)
        except (TimeoutError, AssertionError) as error:  # what was measured until then is to be seen
            report.faults.append(f"nothing more was measured: {error}")
            break
        report.samples.append(sample)
        print(json.dumps(vars(sample)), file=sys.stderr, flush=True)
    elapsed_s = time.monotonic() - begin_s
    report.n_slices = daemon.ask({"htype": "get_health"})["n_cnn_runs"]
    report.fps = report.n_slices / elapsed_s
    stop.set()
    for thread in threads:
        thread.join(PATIENCE_S)
        if thread.is_alive():
            report.faults.append(f"{thread} hangs")
    never_reads.close(linger=0)
    if not any(thread.is_alive() for thread in threads):
        until_idle(daemon)
        published.tell_number()
        until_idle(daemon)
    health = daemon.ask({"htype": "get_health"})
    still_open = daemon.ask({"htype": "get_state", "stack_id": ""})["stacks"]
    if health["n_worker_restarts"]:
        report.faults.append(f"{health['n_worker_restarts']} workers died")
    code = daemon.stop()
    if code != 0:
        report.faults.append(f"the daemon ended with {code}: {daemon.log.read_text()[-1_000:]}")
    results = [*final_results(folder), *still_open]
    for sender in senders:
        own = [r for r in results if r["instrument"] == sender.client.instrument]
        report.faults += account_acknowledged(sender, own)
    own = [r for r in results if r["instrument"] == "published"]
    report.faults += [published.fault] if published.fault else []
    report.faults += account_published(own, published.n_slices)
    report.faults += reckon(own, published.n_sent, health["n_lost"], health["n_rejected"])
    report.n_lost_reported = health["n_lost"]
    return report


def final_results(folder: Path) -> list[dict[str, Any]]:
    """Return those of all ended stacks, oldest first, out of the journal."""
    command = [sys.executable, "-m", "rcm_daemon", "stacks", "--json", "-"]
    command += ["--state-dir", str(folder / "state")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def account_acknowledged(sender: Acknowledged, results: list[dict[str, Any]]) -> list[str]:
    """Return what is wrong with the results of an instrument of which nothing may be lost."""
    faults = [sender.fault] if sender.fault else []
    faults += [f"refused: {refusal}" for refusal in sender.client.refusals]
    n_found = sum(r["n_slices"] for r in results)
    if not results or n_found != sender.n_slices or any(r["state"] != "complete" for r in results):
        faults.append(f"{sender.client.instrument} sent {sender.n_slices} slices, {n_found} came")
    return faults


def account_published(results: list[dict[str, Any]], n_sent_of: dict[str, int]) -> list[str]:
    """Return what is wrong with single stacks, of which `n_sent_of` slices were published."""
    faults, n_missing = [], 0
    for result in results:
        n_known = result["n_slices"] + result["n_missing"] + result["n_rejected"]
        n_sent = n_sent_of[result["stack_id"]]
        # Of a stack whose end was lost, the last slices may be known as lost messages only.
        if n_known != n_sent and (result["n_expected"] or n_known > n_sent):
            faults.append(f"{result['stack_id']}: {n_known} of {n_sent} slices are accounted for")
        # Not stack by stack: a hole over the end of one and the start of the next is reported with the first.
        n_missing += result["n_missing"]
        if result["n_lost"] < n_missing:
            lost = f"only {result['n_lost']} reported as lost"
            faults.append(f"{result['stack_id']}: {n_missing} slices missing by then, {lost}")
    return faults


def reckon(results: list[dict[str, Any]], n_sent: int, n_lost: int, n_rejected: int) -> list[str]:
    """Return what is wrong with the sum over the messages that were published.

    Of each, one of three is to be known: a result holds it, it is reported as lost, or it was refused. Losses
    and refusals are the daemon's, of all instruments, since the acknowledged ones may have none; a stack of
    which everything was lost has no result.
    """
    if not results:
        return [f"of {n_sent} messages published there is no result"]
    n_taken = sum(r["n_slices"] + r["start_seen"] + (r["n_expected"] > 0) for r in results)
    if n_taken + n_lost + n_rejected != n_sent:
        return [f"{n_sent} published: {n_taken} in results, {n_lost} lost, {n_rejected} refused"]
    return []


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        print(outcome := run_soak(Path(name), float(sys.argv[1])))
    sys.exit(not outcome.is_good)
