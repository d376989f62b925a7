"""What must hold on a machine with a CUDA device; `make gpu` runs it there."""

from __future__ import annotations

import numpy as np
import pytest

from rcm_daemon.bundle.check import check_bundle
from rcm_daemon.bundle.location import default_bundle_path
from rcm_daemon.bundle.sessions import Networks
from rcm_daemon.bundle.verify import load_verified

pytestmark = pytest.mark.gpu


def test_default_bundle_passes_its_check_on_cuda():
    report = check_bundle(default_bundle_path(), "cuda")
    assert report.ok, [item for item in report.items if not item.ok]


def test_auto_takes_the_gpu_and_agrees_with_the_cpu():
    bundle = load_verified(default_bundle_path())
    on_gpu, on_cpu = Networks.open(bundle, "auto"), Networks.open(bundle, "cpu")
    assert on_gpu.provider == "cuda"
    rng = np.random.default_rng(0)
    for _ in range(5):
        image = rng.integers(0, 256, bundle.manifest.input.shape, dtype=np.uint8)
        expected = on_cpu.embed(image)
        assert np.abs(on_gpu.embed(image) - expected).max() < 5e-3 * np.abs(expected).max()
