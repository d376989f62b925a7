"""OpenVINO computes what ONNX Runtime does, resize included, or is refused in one sentence."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper
from tiny_bundle import SIZE, add_int8, cnn_bytes, model_bytes, write_bundle

from rcm_daemon.bundle.check import check_bundle
from rcm_daemon.bundle.manifest import Manifest, rewrite_manifest
from rcm_daemon.bundle.openvino_cnn import resize_weights
from rcm_daemon.bundle.sessions import Networks
from rcm_daemon.bundle.verify import load_verified
from rcm_daemon.errors import BundleError

if TYPE_CHECKING:
    from pathlib import Path

FIELD = (90, 70)
SMALL = (17, 64)


def resizing_cnn(antialias: int = 1) -> bytes:
    """Shrink a field as the trainer's graphs do, then one random matrix."""
    rng = np.random.default_rng(1)
    nodes = [
        helper.make_node("Cast", ["slices"], ["grey"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["grey", "axis"], ["image"]),
        helper.make_node(
            "Resize", ["image", "", "", "size"], ["small"], axes=[2, 3], mode="linear", antialias=antialias,
            exclude_outside=antialias, coordinate_transformation_mode="half_pixel",
        ),
        helper.make_node("Flatten", ["small"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "matrix"], ["embeddings"]),
    ]  # fmt: skip
    weights = {
        "axis": np.array([1], np.int64),
        "size": np.array(SMALL, np.int64),
        "matrix": rng.normal(0, 0.01, (SMALL[0] * SMALL[1], SIZE)).astype(np.float32),
    }
    inputs = [("slices", TensorProto.UINT8, ["batch", *FIELD])]
    return model_bytes(nodes, inputs, [("embeddings", TensorProto.FLOAT, ["batch", SIZE])], weights)


def write_resizing(folder: Path, cnn: bytes) -> Path:
    write_bundle(folder, kind="whole", cnn=cnn, field_shape=FIELD)
    return folder


@pytest.mark.parametrize(("n_before", "n_after"), [(1000, 192), (90, 17), (70, 64), (20, 31), (5, 5)])
def test_resize_weights_are_those_of_onnx(n_before: int, n_after: int) -> None:
    nodes = [
        helper.make_node(
            "Resize", ["rows", "", "", "size"], ["small"], mode="linear", antialias=1, exclude_outside=1,
            coordinate_transformation_mode="half_pixel", axes=[2],
        )
    ]  # fmt: skip
    floats = TensorProto.FLOAT
    model = model_bytes(
        nodes, [("rows", floats, [1, 1, n_before, n_before])], [("small", floats, [1, 1, n_after, n_before])],
        {"size": np.array([n_after], np.int64)},
    )  # fmt: skip
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (weights,) = session.run(None, {"rows": np.eye(n_before, dtype=np.float32)[None, None]})
    assert np.abs(resize_weights(n_before, n_after) - weights[0, 0]).max() < 1e-5


def test_a_resizing_network_is_the_same_on_both(tmp_path: Path) -> None:
    bundle = load_verified(write_resizing(tmp_path, resizing_cnn()))
    here, there = Networks.open(bundle, "cpu"), Networks.open(bundle, "openvino")
    assert there.provider == "openvino"
    assert there.digest == here.digest
    image = np.random.default_rng(7).integers(0, 255, FIELD).astype(np.uint8)
    expected = here.embed(image)
    assert np.abs(there.embed(image) - expected).max() < 1e-4 * np.abs(expected).max()
    assert np.array_equal(there.embed(image), there.embed(image.copy()))
    assert check_bundle(tmp_path, "openvino").ok


def test_an_int8_variant_is_checked_there_too(tmp_path: Path) -> None:
    write_bundle(tmp_path, kind="whole")
    add_int8(tmp_path)
    report = check_bundle(tmp_path, "openvino")
    assert report.ok, report
    assert report.items[-1].detail.startswith("int8 on openvino: largest difference")
    add_int8(tmp_path, bias=0.25, golden_bias=0.5)
    assert not check_bundle(tmp_path, "openvino").ok


def test_a_resize_that_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    bundle = load_verified(write_resizing(tmp_path, resizing_cnn(antialias=0)))
    with pytest.raises(BundleError, match=r"cnn\.onnx must run here with OpenVINO, but .* antialiased"):
        Networks.open(bundle, "openvino")


def test_networks_that_compute_otherwise_or_are_corrupt_are_refused(tmp_path: Path) -> None:
    write_bundle(tmp_path / "other", kind="whole")
    (tmp_path / "other/cnn.onnx").write_bytes(cnn_bytes(bias=1.0))
    rewrite_manifest(tmp_path / "other", Manifest.load(tmp_path / "other"))
    with pytest.raises(BundleError, match="must be the golden ones on openvino"):
        Networks.open(load_verified(tmp_path / "other"), "openvino")
    write_bundle(tmp_path / "corrupt", cnn=b"no graph")
    with pytest.raises(BundleError, match=r"cnn\.onnx must run here with OpenVINO"):
        Networks.open(load_verified(tmp_path / "corrupt"), "openvino")


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bundle(tmp_path)
    monkeypatch.setitem(sys.modules, "openvino", None)
    wanted = r'provider openvino needs .* not installed: pip install "rcm-daemon\[openvino\]"'
    with pytest.raises(BundleError, match=wanted):
        Networks.open(load_verified(tmp_path), "openvino")


def test_threads_are_as_many_as_were_asked_for(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    networks = Networks.open(load_verified(tmp_path), "openvino", n_threads=1)
    assert networks._cnn._compiled.get_property("INFERENCE_NUM_THREADS") == 1
