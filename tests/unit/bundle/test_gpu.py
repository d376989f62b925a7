"""What must hold on a machine with a CUDA device; `make gpu` runs it there."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

from rcm_daemon.bundle.check import check_bundle
from rcm_daemon.bundle.cnn import open_cnn, run_cnn
from rcm_daemon.bundle.execution import Execution
from rcm_daemon.bundle.golden import read_golden
from rcm_daemon.bundle.location import default_bundle_path
from rcm_daemon.bundle.manifest import Manifest, rewrite_manifest
from rcm_daemon.bundle.provider import tensorrt_fault
from rcm_daemon.bundle.sessions import Networks
from rcm_daemon.bundle.verify import load_verified

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.gpu


def images(n: int) -> np.ndarray:
    shape = Manifest.load(default_bundle_path()).input.shape
    return np.random.default_rng(0).integers(0, 256, (n, *shape), dtype=np.uint8)


def test_default_bundle_passes_its_check_on_cuda():
    report = check_bundle(default_bundle_path(), "cuda")
    assert report.ok, [item for item in report.items if not item.ok]


def test_auto_takes_the_gpu_and_agrees_with_the_cpu():
    bundle = load_verified(default_bundle_path())
    on_gpu, on_cpu = Networks.open(bundle, "auto"), Networks.open(bundle, "cpu")
    assert on_gpu.provider == "cuda"
    for image in images(5):
        expected = on_cpu.embed(image)
        on_gpu.keep_warm()
        assert np.abs(on_gpu.embed(image) - expected).max() < 5e-3 * np.abs(expected).max()


def test_a_recorded_run_is_replayed_on_the_slice_it_is_given():
    bundle = load_verified(default_bundle_path())
    recorded = open_cnn(bundle, "fp32", "cuda", Execution("cuda"), in_graph=True)
    plain = open_cnn(bundle, "fp32", "cuda", Execution("cuda"))
    for image in images(6):
        expected = run_cnn(plain, image, 256, "a slice")
        assert np.abs(run_cnn(recorded, image, 256, "a slice") - expected).max() < 1e-4


@pytest.fixture
def with_fp16(tmp_path: Path) -> Path:
    from trainer.quantise import in_half

    folder = tmp_path / "bundle"
    shutil.copytree(default_bundle_path(), folder)
    (folder / "cnn.fp16.onnx").write_bytes(in_half((folder / "cnn.onnx").read_bytes()))
    embeddings = read_golden(load_verified(default_bundle_path()))["slice_embeddings"]
    np.savez(folder / "golden.fp16.npz", slice_embeddings=embeddings)
    variant = {"network": "cnn.fp16.onnx", "golden": "golden.fp16.npz", "embedding_tolerance": 0.02}
    variant |= {"n_calibration_slices": 0, "n_validation_slices": 1}
    variant |= {"accuracy": 0.9, "accuracy_fp32": 0.9, "agreement": 1.0}
    rewrite_manifest(folder, Manifest.load(folder), variants={"fp16": variant})
    return folder


def test_half_precision_runs_on_cuda_and_auto_measures_it(with_fp16: Path):
    bundle = load_verified(with_fp16)
    half = Networks.open(bundle, "cuda", variant="fp16")
    full = Networks.open(bundle, "cuda")
    for image in images(3):
        expected = full.embed(image)
        assert np.abs(half.embed(image) - expected).max() < 0.02 * np.abs(expected).max()
    chosen = Networks.open(bundle, "cuda", variant="auto")
    assert chosen.variant in ("fp32", "fp16")
    assert chosen.reason.count(" ms") == 2


@pytest.mark.timeout(900)
def test_tensorrt_passes_the_same_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if fault := tensorrt_fault():
        pytest.skip(fault)
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path))
    report = check_bundle(default_bundle_path(), "tensorrt")
    assert report.ok, [item for item in report.items if not item.ok]
    assert list((tmp_path / "tensorrt").glob("*.engine"))
