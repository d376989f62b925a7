"""What a worker does for nothing: nothing that is there can end it, whatever the daemon writes meanwhile."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from tiny_bundle import FIELD, write_bundle

from rcm_daemon.bundle.channel import SharedMemory, SharedView, encode
from rcm_daemon.bundle.sessions import Networks
from rcm_daemon.bundle.verify import load_verified
from rcm_daemon.bundle.worker import rehearse, run_cnn_for_nothing
from rcm_daemon.core.controller import Controller, StackPlan
from rcm_daemon.core.stack import EmbeddedSlice, PartialStack
from rcm_daemon.errors import DeviceError, InferenceError

N_BEFORE = 3


@pytest.fixture
def networks(tmp_path):
    write_bundle(tmp_path / "bundle")
    opened = Networks.open(load_verified(tmp_path / "bundle"), "cpu")
    opened.n_cnn_runs = 0
    return opened


@pytest.fixture
def memory():
    memory = SharedMemory()
    yield memory
    memory.close()


def request_in(memory, networks):
    """Write a slice and its stack; returns the two messages that ask for it."""
    plan = StackPlan("a", tuple(3.0 * i for i in range(8)), FIELD, "uint8", 0, 0.5)
    new = Controller("m1", "r1").slice(plan, N_BEFORE, np.full(FIELD, 90, np.uint8), 0)
    size = networks.manifest.embedding_size
    before = [EmbeddedSlice(i, 3.0 * i, np.full(size, 1.0 + i, np.float32)) for i in range(N_BEFORE + 1)]
    memory.write(new.blob)
    memory.write_stack(PartialStack(tuple(before)), new.blob.nbytes)
    fields = {"kind": "embed", "n_bytes": new.blob.nbytes, "header": new.header.model_dump(by_alias=True)}
    return encode(fields | {"stack_follows": True}), encode({"n": N_BEFORE + 1, "place": N_BEFORE})


def test_a_request_is_gone_through_as_a_whole(networks, memory):
    request, follows = request_in(memory, networks)
    asked = []
    rehearse(networks, SharedView(memory.reader()), request, lambda: asked.append(1) or follows)
    assert networks.n_cnn_runs == 1
    assert asked == [1]


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_whatever_has_been_written_over_the_stack_ends_nothing_and_warns_of_nothing(networks, memory, value):
    request, follows = request_in(memory, networks)
    n_bytes = FIELD[0] * FIELD[1] + 4 * (N_BEFORE + 1) * (networks.manifest.embedding_size + 2)
    memory.write(memoryview(np.full(n_bytes // 4 + 16, value, np.float32)).cast("B"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rehearse(networks, SharedView(memory.reader()), request, lambda: follows)


@pytest.mark.parametrize(
    ("provider", "error", "ends"),
    [
        ("cpu", DeviceError, False),
        ("cuda", DeviceError, True),
        ("cuda", InferenceError, False),
    ],
)
def test_only_a_gpu_that_failed_ends_a_worker_that_waits(monkeypatch, networks, provider, error, ends):
    def fail():
        raise error("no")

    monkeypatch.setattr(networks, "keep_warm", fail)
    monkeypatch.setattr(networks, "provider", provider)
    if ends:
        with pytest.raises(DeviceError):
            run_cnn_for_nothing(networks)
    else:
        run_cnn_for_nothing(networks)
