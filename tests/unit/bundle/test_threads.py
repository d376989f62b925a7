"""How many threads a CNN gets where nobody says so: measured on a clock that the networks themselves move."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from tiny_bundle import write_bundle

from rcm_daemon.bundle import threads
from rcm_daemon.bundle.execution import Execution
from rcm_daemon.bundle.sessions import Networks
from rcm_daemon.bundle.threads import WORTH, settle_threads
from rcm_daemon.bundle.verify import load_verified


@pytest.fixture
def bundle(tmp_path):
    write_bundle(tmp_path / "bundle", kind="whole")
    return load_verified(tmp_path / "bundle")


@pytest.fixture
def four_cores(monkeypatch):
    monkeypatch.setattr("rcm_daemon.bundle.execution.n_cores", lambda: 4)


@pytest.fixture
def run_of(bundle, monkeypatch):
    """Networks that take so many seconds on so many threads."""
    clock = SimpleNamespace(now_s=0.0, pauses=0)

    class Cnn:
        def __init__(self, seconds):
            self._seconds = seconds

        def run(self, batch):
            del batch
            clock.now_s += self._seconds
            return np.zeros(bundle.manifest.embedding_size, np.float32)

    def sleep(seconds):
        clock.now_s += seconds
        clock.pauses += 1

    monkeypatch.setattr(threads.time, "perf_counter", lambda: clock.now_s)
    monkeypatch.setattr(threads.time, "sleep", sleep)

    def take(**seconds_of):
        monkeypatch.setattr(
            threads, "open_cnn", lambda _b, _v, _p, execution: Cnn(seconds_of[f"t{execution.n_threads}"])
        )
        return clock

    return take


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize(
    ("one_s", "all_s", "expected"),
    [
        (0.006, 0.008, 1),
        (0.080, 0.044, 4),
        (0.010, 0.010 * WORTH + 1e-6, 1),
        (0.010, 0.010 * WORTH - 1e-6, 4),
    ],
)
def test_all_cores_are_taken_where_they_are_worth_it(bundle, run_of, one_s, all_s, expected):
    clock = run_of(t1=one_s, t4=all_s)
    assert settle_threads(bundle, "cpu", Execution()).n_threads == expected
    assert clock.pauses == 2 * threads.N_ROUNDS


@pytest.mark.usefixtures("four_cores")
def test_a_number_that_is_set_and_other_providers_are_left_alone(bundle, monkeypatch):
    monkeypatch.setattr(threads, "open_cnn", lambda *_: pytest.fail("nothing is to be measured"))
    for provider, execution in (("cpu", Execution(n_threads=3)), ("openvino", Execution())):
        assert settle_threads(bundle, provider, execution) == execution
    monkeypatch.setattr("rcm_daemon.bundle.execution.n_cores", lambda: 1)
    assert settle_threads(bundle, "cpu", Execution()) == Execution()


@pytest.mark.usefixtures("four_cores")
def test_networks_say_on_how_many_they_run(bundle):
    networks = Networks.open(bundle, "cpu")
    assert networks.n_threads in (1, 4)
    expected = Networks.open(bundle, "cpu", networks.n_threads)
    image = np.random.default_rng(0).integers(0, 256, bundle.manifest.cnn_shape, np.uint8)
    np.testing.assert_array_equal(networks.embed(image), expected.embed(image))
