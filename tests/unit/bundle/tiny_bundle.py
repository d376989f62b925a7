"""Bundles small enough for a test, written with the onnx package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from rcm_daemon.bundle.manifest import Manifest, rewrite_manifest, write_manifest

if TYPE_CHECKING:
    from pathlib import Path

FIELD = (24, 32)
SIZE = 256


def model_bytes(
    nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: dict[str, Any], **options: Any
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [
            value if not isinstance(value, np.ndarray) else numpy_helper.from_array(value, name)
            for name, value in weights.items()
        ],
    )
    opset = helper.make_opsetid(options.get("domain", ""), options.get("opset", 18))
    model = helper.make_model(graph, opset_imports=[opset], ir_version=9)
    return bytes(model.SerializeToString())


def cnn_bytes(
    field: tuple[int, int] = FIELD, size: int = SIZE, dtype: int = TensorProto.UINT8, bias: float = 0.0
) -> bytes:
    """Mean-free grey levels through one random matrix; black gives `bias` everywhere."""
    rng = np.random.default_rng(1)
    matrix = rng.normal(0, 0.01, (field[0] * field[1], size)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["slices"], ["grey"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["grey"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "matrix"], ["raw"]),
        helper.make_node("Add", ["raw", "bias"], ["embeddings"]),
    ]
    return model_bytes(
        nodes,
        [("slices", dtype, ["batch", *field])],
        [("embeddings", TensorProto.FLOAT, ["batch", size])],
        {"matrix": matrix, "bias": np.full(size, bias, np.float32)},
    )


def rcn_bytes(
    size: int = SIZE, inputs: tuple[str, ...] = ("embeddings", "z_um", "weight"), n_classes: int = 3
) -> bytes:
    """Softmax over each embedding plus the stack's mean, tilted by depth, scaled by weight."""
    rng = np.random.default_rng(2)
    nodes = [
        helper.make_node("ReduceMean", ["embeddings", "axis0"], ["mean"]),
        helper.make_node("Add", ["embeddings", "mean"], ["context"]),
        helper.make_node("MatMul", ["context", "matrix"], ["logits0"]),
    ]
    last = "logits0"
    if "z_um" in inputs:
        nodes += [
            helper.make_node("Unsqueeze", ["z_um", "axis1"], ["z_column"]),
            helper.make_node("Mul", ["z_column", "tilt"], ["tilted"]),
            helper.make_node("Add", [last, "tilted"], ["logits1"]),
        ]
        last = "logits1"
    if "weight" in inputs:
        nodes += [
            helper.make_node("Unsqueeze", ["weight", "axis1"], ["weight_column"]),
            helper.make_node("Mul", [last, "weight_column"], ["logits2"]),
        ]
        last = "logits2"
    nodes.append(helper.make_node("Softmax", [last], ["probabilities"], axis=1))
    return model_bytes(
        nodes,
        [(name, TensorProto.FLOAT, ["n", size] if name == "embeddings" else ["n"]) for name in inputs],
        [("probabilities", TensorProto.FLOAT, ["n", n_classes])],
        {
            "matrix": rng.normal(0, 0.1, (size, n_classes)).astype(np.float32),
            "tilt": np.linspace(-0.05, 0.05, n_classes, dtype=np.float32),
            "axis0": np.array([0], np.int64),
            "axis1": np.array([1], np.int64),
        },
    )


def write_bundle(
    folder: Path, *, cnn: bytes | None = None, rcn: bytes | None = None, **options: Any
) -> Manifest:
    """Write a whole bundle; golden vectors are what its networks give here (zeros when they do not run)."""
    folder.mkdir(exist_ok=True)
    cnn, rcn = (
        cnn or cnn_bytes(),
        rcn or rcn_bytes(inputs=options.get("rcn_inputs", ("embeddings", "z_um", "weight"))),
    )
    (folder / "cnn.onnx").write_bytes(cnn)
    (folder / "rcn.onnx").write_bytes(rcn)
    (folder / "MODEL_CARD.md").write_text("# tiny\n")
    (folder / "golden.npz").write_bytes(b"")
    arguments: dict[str, Any] = {
        "name": "tiny",
        "version": "1",
        "kind": "partial",
        "field_shape": FIELD,
        "pixel_size_um": 0.5,
        "z_step_um": (1.5, 5.0),
        "rcn_inputs": ("embeddings", "z_um", "weight"),
        "provenance": {
            "data_digest": "0" * 64,
            "seed": 1,
            "commands": ["none"],
            "versions": {},
            "created": "2026-01-01",
            "metrics": {"accuracy": 0.5},
        },
    }
    arguments.update(options)
    write_golden(folder, arguments)
    return write_manifest(folder, **arguments)


def add_int8(folder: Path, *, bias: float = 0.25, golden_bias: float | None = None) -> Manifest:
    """Put a variant into a bundle: its CNN gives `bias` more, and golden vectors say `golden_bias` more."""
    golden = np.load(folder / "golden.npz")["slice_embeddings"]
    (folder / "cnn.int8.onnx").write_bytes(cnn_bytes(bias=bias))
    said = golden + np.float32(bias if golden_bias is None else golden_bias)
    np.savez(folder / "golden.int8.npz", slice_embeddings=said)
    variant = {
        "network": "cnn.int8.onnx",
        "golden": "golden.int8.npz",
        "embedding_tolerance": 1e-3,
        "n_calibration_slices": 1,
        "n_validation_slices": 100,
        "accuracy": 0.89,
        "accuracy_fp32": 0.9,
        "agreement": 0.97,
    }
    return rewrite_manifest(folder, Manifest.load(folder), variants={"int8": variant})


def write_golden(folder: Path, arguments: dict[str, Any]) -> None:
    import onnxruntime as ort

    rng = np.random.default_rng(3)
    slices = rng.integers(0, 255, (2, *arguments["field_shape"])).astype(np.uint8)
    stack = {
        "embeddings": rng.normal(size=(7, SIZE)).astype(np.float32),
        "z_um": np.arange(7, dtype=np.float32) * 3,
        "weight": np.ones(7, np.float32),
    }
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        cnn = ort.InferenceSession((folder / "cnn.onnx").read_bytes(), options)
        rcn = ort.InferenceSession((folder / "rcn.onnx").read_bytes(), options)
        embeddings = cnn.run(None, {"slices": slices})[0]
        probabilities = rcn.run(None, {name: stack[name] for name in arguments["rcn_inputs"]})[0]
    except Exception:  # a bundle made to be refused
        embeddings, probabilities = np.zeros((2, SIZE), np.float32), np.zeros((7, 3), np.float32)
    np.savez(
        folder / "golden.npz",
        slices=slices,
        slice_embeddings=embeddings,
        stack_probabilities=probabilities,
        **{f"stack_{name}": value for name, value in stack.items()},
    )
