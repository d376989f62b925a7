"""One worker after another for one bundle, with real processes."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import FIELD, write_bundle

from rcm_daemon.bundle.launch import Launch
from rcm_daemon.bundle.supervisor import (
    START_DEADLINE_S,
    TENSORRT_START_DEADLINE_S,
    Answer,
    Died,
    Ready,
    Supervisor,
)
from rcm_daemon.core.quality import weight_of
from rcm_daemon.core.stack import EmbeddedSlice, PartialStack

PATIENCE_S = 60.0


class Bench:
    """A supervisor and its events, waited for."""

    def __init__(self, launch, deadline_s=30.0, **options):
        self.interest = select.epoll()
        self.supervisor = Supervisor(launch, deadline_s, self.interest, time.monotonic(), **options)
        self.events = []

    def next(self):
        give_up_s = time.monotonic() + PATIENCE_S
        while not self.events:
            assert time.monotonic() < give_up_s
            due_s = self.supervisor.due_s
            now_s = time.monotonic()
            self.interest.poll(PATIENCE_S if due_s is None else max(0.0, min(PATIENCE_S, due_s - now_s)))
            self.events += self.supervisor.advance(time.monotonic())
        return self.events.pop(0)

    def embed(self, image, *, stack_follows=False, pixel_size_um=0.5):
        self.supervisor.memory.write(memoryview(image).cast("B"))
        header = {
            "instrument": "m1", "run_id": "r", "msg_number": 0, "stack_id": "s", "index": 3, "z_um": 9.0,
            "shape": list(FIELD), "dtype": "uint8", "max_value": 0, "byte_order": "little", "encoding": "raw",
            "pixel_size_um": pixel_size_um, "crc32": 0, "time_s": 0, "time_ns": 0,
        }  # fmt: skip
        fields = {"kind": "embed", "n_bytes": image.nbytes, "header": header, "stack_follows": stack_follows}
        self.supervisor.request(fields, time.monotonic())

    def close(self):
        self.supervisor.close()
        self.interest.close()


@pytest.fixture
def bundle(tmp_path):
    write_bundle(tmp_path / "bundle", kind="whole")
    return tmp_path / "bundle"


@pytest.fixture
def bench(bundle):
    bench = Bench(Launch(str(bundle)))
    yield bench
    bench.close()


def image(seed):
    return np.random.default_rng(seed).integers(0, 255, FIELD).astype(np.uint8)


def test_a_later_generation_runs_on_the_threads_of_the_first(bench):
    first = bench.next()
    assert isinstance(first, Ready)
    assert first.bundle.n_threads >= 1
    os.kill(bench.supervisor.pid, signal.SIGKILL)
    assert isinstance(bench.next(), Died)
    assert isinstance(bench.next(), Ready)
    launched = json.loads(Path(f"/proc/{bench.supervisor.pid}/cmdline").read_bytes().split(b"\0")[4])
    assert launched["n_threads"] == first.bundle.n_threads


def test_it_embeds_and_labels_as_the_networks_do_here(bench, bundle):
    from rcm_daemon.bundle.sessions import Networks
    from rcm_daemon.bundle.verify import load_verified

    networks = Networks.open(load_verified(bundle), "cpu")
    ready = bench.next()
    assert isinstance(ready, Ready)
    assert (ready.bundle.digest, ready.bundle.provider) == (networks.digest, "cpu")
    slices = []
    for seed in range(3):
        bench.embed(image(seed))
        answer = bench.next()
        assert isinstance(answer, Answer)
        embedding = np.frombuffer(answer.payload, np.float32)
        assert np.array_equal(embedding, networks.embed(image(seed)))
        slices.append(EmbeddedSlice(seed, 3.0 * seed, embedding))
    stack = PartialStack(tuple(slices))
    bench.supervisor.memory.write_stack(stack)
    bench.supervisor.request({"kind": "label", "n": 3}, time.monotonic())
    labelled = bench.next()
    expected = networks.label(stack.embeddings, stack.z_um, stack.weight)
    assert np.array_equal(np.frombuffer(labelled.payload, np.float32).reshape(3, 3), expected)


@pytest.mark.parametrize("seed", [1, 0, 2])  # a picture of its own, that of the slice above, of the one below
def test_a_slice_is_embedded_and_its_stack_labelled_in_one_request(bench, bundle, seed):
    from rcm_daemon.bundle.sessions import Networks
    from rcm_daemon.bundle.verify import load_verified

    networks = Networks.open(load_verified(bundle), "cpu")
    bench.next()
    before = [EmbeddedSlice(i, 9.0 * i, networks.embed(image(i))) for i in (0, 2)]
    empty = EmbeddedSlice(1, 9.0, np.zeros_like(before[0].embedding), 0.0)
    new = image(seed)
    bench.embed(new, stack_follows=True)
    bench.supervisor.memory.write_stack(PartialStack((before[0], empty, before[1])), new.nbytes)
    bench.supervisor.follow_up({"n": 3, "place": 1})
    answer = bench.next()
    n_bytes = answer.fields["n_bytes"]
    embedding = np.frombuffer(answer.payload[:n_bytes], np.float32)
    assert np.array_equal(embedding, networks.embed(new))
    weight = weight_of(answer.fields["flags"])
    whole = PartialStack((before[0], EmbeddedSlice(1, 9.0, embedding, weight), before[1]))
    assert bool(whole.weight[1]) is (seed != 0)
    assert bool(whole.weight[2]) is (seed != 2)
    expected = networks.label(whole.embeddings, whole.z_um, whole.weight)
    assert np.array_equal(np.frombuffer(answer.payload[n_bytes:], np.float32).reshape(3, 3), expected)


def test_the_stack_of_a_slice_that_cannot_be_embedded_is_no_request_of_its_own(bench):
    bench.next()
    bench.embed(image(0), stack_follows=True, pixel_size_um=60.0)
    bench.supervisor.follow_up({"n": 1, "place": 0})
    answer = bench.next()
    assert answer.fields["kind"] == "failed"
    assert "pitch" in answer.fields["error"]
    bench.embed(image(1))
    assert bench.next().fields["kind"] == "embedded"


@pytest.mark.hazard("H49")
def test_a_killed_worker_is_followed_by_another_on_a_channel_of_its_own(bench):
    bench.next()
    first = bench.supervisor.pid
    bench.embed(image(0))
    os.kill(first, signal.SIGKILL)
    events = [bench.next()]
    if isinstance(events[0], Answer):  # it had answered already
        events.append(bench.next())
    assert isinstance(events[-1], Died)
    assert isinstance(bench.next(), Ready)
    assert bench.supervisor.pid != first
    bench.embed(image(1))
    assert isinstance(bench.next(), Answer)


@pytest.mark.hazard("H48")
def test_a_stopped_worker_is_killed_at_its_deadline(bundle):
    bench = Bench(Launch(str(bundle)), deadline_s=0.3)
    bench.next()
    stopped = bench.supervisor.pid
    os.kill(stopped, signal.SIGSTOP)
    bench.embed(image(0))
    died = bench.next()
    assert isinstance(died, Died)
    assert (died.had_request, died.reason) == (True, "the worker did not answer within 0.3 s")
    assert isinstance(bench.next(), Ready)
    bench.close()
    assert not os.path.exists(f"/proc/{stopped}")


@pytest.mark.hazard("H44")
def test_a_bundle_that_changed_on_disk_is_not_what_the_next_worker_serves(bench, bundle):
    bench.next()
    write_bundle(bundle, kind="whole", version="2")
    os.kill(bench.supervisor.pid, signal.SIGKILL)
    assert isinstance(bench.next(), Died)
    refused = bench.next()
    assert isinstance(refused, Died)
    assert "must have digest" in refused.refused


def test_a_worker_that_cannot_start_is_tried_again_with_growing_pauses(bundle):
    bench = Bench(Launch(str(bundle)), command=(sys.executable, "-c", "raise SystemExit(3)"))
    pauses = []
    for _ in range(3):
        assert isinstance(bench.next(), Died)
        pauses.append(bench.supervisor.due_s - time.monotonic())
    assert pauses[0] < 0.11
    assert 0.2 < pauses[2] <= 0.41
    bench.close()


@pytest.mark.parametrize(
    ("provider", "deadline_s"), [("cpu", START_DEADLINE_S), ("tensorrt", TENSORRT_START_DEADLINE_S)]
)
def test_an_engine_has_the_time_it_takes_to_be_built(bundle, provider, deadline_s):
    begun_s = time.monotonic()
    waits = (sys.executable, "-c", "input()")
    bench = Bench(Launch(str(bundle), provider=provider), command=waits)
    bench.supervisor.advance(time.monotonic())
    assert bench.supervisor.due_s - begun_s == pytest.approx(deadline_s, abs=5)
    bench.close()


def test_what_the_worker_is_given_it_can_only_read(bench):
    bench.next()
    reader = bench.supervisor.memory.reader()
    with pytest.raises(OSError):
        os.write(reader, b"x")
    os.close(reader)
