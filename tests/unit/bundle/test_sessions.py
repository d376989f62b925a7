"""Networks in ONNX Runtime: what is refused at load, and what comes out of a run."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from tiny_bundle import FIELD, SIZE, cnn_bytes, model_bytes, rcn_bytes, write_bundle

from rcm_daemon.bundle import provider as provider_module
from rcm_daemon.bundle import sessions as sessions_module
from rcm_daemon.bundle.provider import cuda_fault
from rcm_daemon.bundle.sessions import Networks
from rcm_daemon.bundle.verify import load_verified
from rcm_daemon.errors import BundleError, InferenceError

if TYPE_CHECKING:
    from pathlib import Path

RNG = np.random.default_rng(0)


def opened(folder: Path, n_threads: int = 1, **options: Any) -> Networks:
    write_bundle(folder, **options)
    return Networks.open(load_verified(folder), "cpu", n_threads=n_threads)


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(BundleError) as caught:
        opened(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def slices(n: int) -> np.ndarray:
    return RNG.integers(0, 256, (n, *FIELD)).astype(np.uint8)


def stack(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return RNG.normal(size=(n, SIZE)).astype(np.float32), np.arange(n) * 3.0, np.ones(n)


def test_embeddings_are_the_graphs_and_runs_are_counted(tmp_path: Path) -> None:
    networks = opened(tmp_path)
    networks.warm_up()
    assert networks.n_cnn_runs == 0
    images = slices(3)
    many = networks.embed_many(images)
    assert many.shape == (3, SIZE)
    assert many.dtype == np.float32
    matrix = np.random.default_rng(1).normal(0, 0.01, (FIELD[0] * FIELD[1], SIZE)).astype(np.float32)
    assert np.allclose(many, images.reshape(3, -1).astype(np.float32) @ matrix, atol=1e-3)
    assert networks.n_cnn_runs == 3
    assert np.array_equal(networks.embed(images[1]), many[1])
    assert networks.n_cnn_runs == 4


def test_no_slices_embed_to_no_rows(tmp_path: Path) -> None:
    assert opened(tmp_path).embed_many(slices(0)).shape == (0, SIZE)


@pytest.mark.parametrize("n", [1, 2, 7, 50, 101])
def test_labels_are_probabilities_at_every_length(tmp_path: Path, n: int) -> None:
    probabilities = opened(tmp_path).label(*stack(n))
    assert probabilities.shape == (n, 3)
    assert np.allclose(probabilities.sum(axis=1), 1)


@pytest.mark.parametrize("inputs", [("embeddings",), ("embeddings", "z_um"), ("embeddings", "weight")])
def test_inputs_the_network_does_not_name_have_no_effect(tmp_path: Path, inputs: tuple[str, ...]) -> None:
    networks = opened(tmp_path, rcn_inputs=inputs)
    embeddings, z_um, weight = stack(5)
    plain = networks.label(embeddings, z_um, weight)
    assert np.array_equal(networks.label(embeddings, z_um + 40, weight), plain) == ("z_um" not in inputs)
    assert np.array_equal(networks.label(embeddings, z_um, weight / 2), plain) == ("weight" not in inputs)


def test_max_slices_is_kept(tmp_path: Path) -> None:
    networks = opened(tmp_path, max_slices=7, kind="whole")
    assert networks.label(*stack(7)).shape == (7, 3)
    with pytest.raises(InferenceError, match="1 to 7 slices, got 8"):
        networks.label(*stack(8))
    with pytest.raises(InferenceError, match="got 0"):
        networks.label(*stack(0))


def test_lengths_that_differ_are_refused(tmp_path: Path) -> None:
    networks = opened(tmp_path, rcn_inputs=("embeddings",))
    embeddings, z_um, weight = stack(4)
    with pytest.raises(InferenceError, match=r"z_um must be \[4\], got \[3\]"):
        networks.label(embeddings, z_um[:3], weight)
    with pytest.raises(InferenceError, match=r"embeddings must be \[4, 256\], got \[4, 7\]"):
        networks.label(embeddings[:, :7], z_um, weight)


@pytest.mark.parametrize(
    "image", [np.zeros((5, 5), np.uint8), np.zeros(FIELD, np.uint16), np.zeros((*FIELD, 1), np.uint8)]
)
def test_cnn_takes_its_field_only(tmp_path: Path, image: np.ndarray) -> None:
    networks = opened(tmp_path)
    with pytest.raises(InferenceError, match=r"uint8 \[24, 32\], got .* for slice 12 of left-arm"):
        networks.embed(image, "slice 12 of left-arm")
    assert networks.n_cnn_runs == 0


@pytest.mark.hazard("H25")
@pytest.mark.parametrize("bias", [np.nan, np.inf, -np.inf])
def test_embedding_that_is_not_finite_is_refused_by_name(tmp_path: Path, bias: float) -> None:
    networks = opened(tmp_path, cnn=cnn_bytes(bias=bias))
    with pytest.raises(InferenceError, match=r"256 of 256 values .* for slice 12 of left-arm"):
        networks.embed(slices(1)[0], "slice 12 of left-arm")
    with pytest.raises(InferenceError, match="for slice 0 of 2"):
        networks.embed_many(slices(2))


@pytest.mark.hazard("H25")
def test_probabilities_that_are_none_are_refused(tmp_path: Path) -> None:
    networks = opened(tmp_path)
    embeddings, z_um, weight = stack(3)
    embeddings[1, 4] = np.nan
    with pytest.raises(InferenceError, match="rows that sum to 1"):
        networks.label(embeddings, z_um, weight)


@pytest.mark.hazard("H40")
@pytest.mark.parametrize(
    "data", [b"x", cnn_bytes()[:500], cnn_bytes()[:-500], bytes(1000), b"PK\x03\x04" * 100]
)
@pytest.mark.parametrize("network", ["cnn", "rcn"])
def test_corrupt_onnx_is_refused(tmp_path: Path, network: str, data: bytes) -> None:
    assert f"{network}.onnx is corrupt or no ONNX file" in refusal(tmp_path, **{network: data})


def relu(**options: Any) -> bytes:
    nodes = [
        helper.make_node(
            options.pop("operator", "Relu"), ["slices"], ["embeddings"], domain=options.get("domain", "")
        )
    ]
    shape = ["n", SIZE]
    return model_bytes(
        nodes,
        [("slices", TensorProto.FLOAT, shape)],
        [("embeddings", TensorProto.FLOAT, shape)],
        {},
        **options,
    )


@pytest.mark.hazard("H41")
@pytest.mark.parametrize(
    "options",
    [
        {"opset": 99},
        {"domain": "elsewhere.ops", "opset": 1},
        {"operator": "Reluu"},
        {"domain": "com.microsoft", "opset": 1, "operator": "PyOp"},
    ],
)
def test_unknown_opset_domain_and_operator_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    message = refusal(tmp_path, cnn=relu(**options))
    assert "cnn.onnx must run here with known operators, opsets and types" in message


def outside(location: str, in_attribute: bool) -> bytes:
    tensor = TensorProto(name="matrix", dims=[FIELD[0] * FIELD[1], SIZE], data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("length", str(4 * FIELD[0] * FIELD[1] * SIZE))):
        tensor.external_data.add(key=key, value=value)
    nodes = [
        helper.make_node("Cast", ["slices"], ["grey"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["grey"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "matrix"], ["embeddings"]),
    ]
    if in_attribute:
        nodes.insert(0, helper.make_node("Constant", [], ["matrix"], value=tensor))
    return model_bytes(
        nodes,
        [("slices", TensorProto.UINT8, ["batch", *FIELD])],
        [("embeddings", TensorProto.FLOAT, ["batch", SIZE])],
        {} if in_attribute else {"matrix": tensor},
    )


@pytest.mark.hazard("H42")
@pytest.mark.parametrize("in_attribute", [False, True])
@pytest.mark.parametrize("place", ["working directory", "bundle", "outside", "absolute"])
def test_external_data_is_refused_wherever_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, in_attribute: bool
) -> None:
    # ONNX Runtime looks for external data of a model given as bytes in the working directory.
    folder = tmp_path / "bundle"
    weights = {
        "working directory": tmp_path / "weights.bin",
        "bundle": folder / "weights.bin",
        "outside": tmp_path.parent / "weights.bin",
        "absolute": tmp_path / "weights.bin",
    }[place]
    location = {
        "working directory": "weights.bin",
        "bundle": "bundle/weights.bin",
        "outside": "../weights.bin",
        "absolute": str(weights),
    }[place]
    folder.mkdir()
    weights.write_bytes(bytes(4 * FIELD[0] * FIELD[1] * SIZE))
    monkeypatch.chdir(tmp_path)
    assert "cnn.onnx refers to external data" in refusal(folder, cnn=outside(location, in_attribute))


@pytest.mark.hazard("H43")
@pytest.mark.parametrize(
    ("networks", "words"),
    [
        ({"rcn": rcn_bytes(size=128)}, ["rcn.onnx input embeddings tensor(float) [any, 128]", "[any, 256]"]),
        ({"cnn": cnn_bytes(size=128)}, ["cnn.onnx output embeddings tensor(float) [1, 128]", "[any, 256]"]),
        (
            {"cnn": cnn_bytes(field=(8, 8))},
            ["cnn.onnx input slices tensor(uint8) [1, 8, 8]", "[any, 24, 32]"],
        ),
        ({"cnn": cnn_bytes(dtype=TensorProto.UINT16)}, ["tensor(uint16)", "tensor(uint8)"]),
        (
            {"rcn": rcn_bytes(n_classes=4)},
            ["rcn.onnx output probabilities tensor(float) [any, 4]", "[any, 3]"],
        ),
        ({"rcn": rcn_bytes(inputs=("embeddings",))}, ["no rcn.onnx input z_um", "no rcn.onnx input weight"]),
        ({"rcn_inputs": ("embeddings",), "rcn": rcn_bytes()}, ["an unexpected rcn.onnx input z_um"]),
        ({"cnn": rcn_bytes()}, ["no cnn.onnx input slices", "an unexpected cnn.onnx output probabilities"]),
    ],
)
def test_dimensions_that_disagree_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, networks: dict[str, Any], words: list[str]
) -> None:
    monkeypatch.setattr("rcm_daemon.bundle.execution.n_cores", lambda: 4)
    for n_threads in (1, 0):  # with 0 they are timed before they are looked at
        message = refusal(tmp_path, n_threads=n_threads, **networks)
        assert all(word in message for word in words), message


@pytest.mark.hazard("H43")
def test_length_baked_into_the_recurrent_network_is_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["embeddings", "matrix"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    baked = model_bytes(
        nodes,
        [("embeddings", TensorProto.FLOAT, [7, SIZE])],
        [("probabilities", TensorProto.FLOAT, [7, 3])],
        {"matrix": np.zeros((SIZE, 3), np.float32)},
    )
    message = refusal(tmp_path, rcn=baked, rcn_inputs=("embeddings",))
    assert "rcn.onnx input embeddings tensor(float) [7, 256] instead of tensor(float) [any, 256]" in message


@pytest.mark.hazard("H46")
def test_cuda_without_a_device_is_refused_and_auto_takes_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions_module, "cuda_fault", lambda: "no CUDA device was found")
    write_bundle(tmp_path)
    bundle = load_verified(tmp_path)
    with pytest.raises(
        BundleError, match=r"provider cuda needs a working CUDA device .* no CUDA device was found"
    ):
        Networks.open(bundle, "cuda")
    assert Networks.open(bundle, "auto").provider == "cpu"


@pytest.mark.hazard("H46")
def test_where_cuda_is_there_and_fails_auto_takes_the_cpu_and_says_why(
    tmp_path: Path, monkeypatch: Any
) -> None:
    write_bundle(tmp_path)
    bundle = load_verified(tmp_path)
    on = Networks._on.__func__  # type: ignore[attr-defined]

    def fail_on_cuda(cls: Any, provider: Any, *rest: Any) -> Networks:
        if provider == "cuda":
            raise InferenceError("out of memory")
        return on(cls, provider, *rest)

    monkeypatch.setattr(sessions_module, "cuda_fault", lambda: "")
    monkeypatch.setattr(Networks, "_on", classmethod(fail_on_cuda))
    networks = Networks.open(bundle, "auto")
    assert networks.provider == "cpu"
    assert networks.reason.endswith("on the CPU, for CUDA is there but failed (out of memory)")


@pytest.mark.hazard("H46")
def test_driver_that_does_not_load_counts_as_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime as ort

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert cuda_fault() == "this ONNX Runtime is built without CUDA"
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])

    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(provider_module.ctypes, "CDLL", missing)
    assert cuda_fault() == "no NVIDIA driver was found"


@pytest.mark.hazard("H46")
def test_tensorrt_without_its_libraries_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime as ort

    write_bundle(tmp_path)
    bundle = load_verified(tmp_path)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(BundleError, match=r"provider tensorrt needs .*, but .* is built without TensorRT"):
        Networks.open(bundle, "tensorrt")
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["TensorrtExecutionProvider"])
    monkeypatch.setitem(sys.modules, "tensorrt_libs", None)
    with pytest.raises(BundleError, match=r'not installed: pip install "rcm-daemon\[tensorrt\]"'):
        Networks.open(bundle, "tensorrt")


HIDDEN_DEVICE = """
import sys
from rcm_daemon.bundle import sessions
from rcm_daemon.bundle.verify import load_verified
sessions.cuda_fault = lambda: ""  # a machine whose driver is there and whose CUDA libraries are not
bundle = load_verified(sys.argv[1])
assert sessions.Networks.open(bundle, "auto").provider == "cpu"
try:
    sessions.Networks.open(bundle, "cuda")
except sessions.BundleError as error:
    assert "cuda" in str(error).lower(), error
else:
    raise SystemExit("fell back to the CPU in silence")
"""


@pytest.mark.hazard("H46")
def test_provider_that_fails_to_start_is_no_silent_cpu(tmp_path: Path) -> None:
    # A process of its own: what ONNX Runtime writes to stderr bypasses Python.
    write_bundle(tmp_path)
    command = [sys.executable, "-c", HIDDEN_DEVICE, str(tmp_path)]
    environment = {"CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_onnxruntime_is_imported_only_when_a_session_opens() -> None:
    code = "import sys, rcm_daemon.bundle.check; raise SystemExit('onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_network_that_tensorrt_leaves_to_cuda_is_refused() -> None:
    tensorrt, cuda = (SimpleNamespace(ep_name=f"{name}ExecutionProvider") for name in ("Tensorrt", "CUDA"))
    provider_module.demand_tensorrt([cuda, tensorrt], "cnn.onnx")
    with pytest.raises(BundleError, match=r"tensorrt must run cnn\.onnx, it takes no operator of it, CUDA"):
        provider_module.demand_tensorrt([cuda, cuda], "cnn.onnx")
