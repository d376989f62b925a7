"""Variants of a CNN: made from training slices, judged on validation stacks, refused when they cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from trainer_commands import run

from rcm_daemon.bundle.check import check_bundle
from rcm_daemon.bundle.manifest import Manifest
from rcm_daemon.bundle.sessions import Networks
from rcm_daemon.bundle.verify import load_verified
from rcm_daemon.errors import BundleError, DataSetError
from trainer import quantise as module
from trainer.data.manifest import load_data_set
from trainer.data.split import draw_split, load_split
from trainer.quantise import Cost, add_variant, note_in_card, pools_to_convolutions

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the processor multiply int8, whatever the machine of this test is."""
    monkeypatch.setattr(module, "has_int8_products", lambda: True)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """Keep which stacks were looked at for ranges, and which for accuracy."""
    seen: list[set[str]] = [set(), set()]
    slices, cost = module.fields_of_stack, module._cost

    def reading(stack):  # type: ignore[no-untyped-def]
        seen[0].add(stack.stack)
        return slices(stack)

    def judging(bundle, draft, stacks, n_workers):  # type: ignore[no-untyped-def]
        seen[1] |= {stack.stack for stack in stacks}
        return cost(bundle, draft, stacks, n_workers)

    monkeypatch.setattr(module, "fields_of_stack", reading)
    monkeypatch.setattr(module, "_cost", judging)
    return seen


def options(work: Path, out: Path) -> list[str]:
    words = ["--data", work / "data", "--split", work / "cnn/split.json", "--out", out, "--workers", "1"]
    return [str(word) for word in words]


@pytest.mark.parametrize(("to", "bundle"), [("int8", "whole"), ("fp16", "single")])
def test_a_variant_joins_the_bundle_and_is_what_it_says(
    work: Path, tmp_path: Path, judged: list[set[str]], monkeypatch: pytest.MonkeyPatch, to: str, bundle: str
) -> None:
    monkeypatch.setattr(module, "MOST_LOST", 1.0)  # a network of four epochs says nothing about the limit
    out = tmp_path / "out"
    said = run("quantise", work / bundle, "--to", to, "--slices", "20", *options(work, out))
    manifest, before = Manifest.load(out), Manifest.load(work / bundle)
    variant = manifest.variants[to]  # type: ignore[index]
    assert f"accuracy {variant.accuracy:.4f} instead of {variant.accuracy_fp32:.4f}" in said
    data = load_data_set(work / "data")
    split = load_split(work / "cnn/split.json", data)
    train, validation = (
        {data.stacks[index].stack for index in split.stack_indices(data, part)}
        for part in ("train", "validation")
    )
    assert judged == [train if to == "int8" else set(), validation]
    assert variant.n_calibration_slices == (20 if to == "int8" else 0)
    assert variant.n_validation_slices == sum(s.n_slices for s in data.stacks if s.stack in validation)
    assert manifest.files["cnn.onnx"] == before.files["cnn.onnx"]
    assert manifest.files[variant.network].n_bytes < 0.75 * manifest.files["cnn.onnx"].n_bytes
    assert manifest.provenance.commands[:-1] == before.provenance.commands
    assert f"## Variant {to}" in (out / "MODEL_CARD.md").read_text()
    if to == "int8":  # a scale a channel of the weights, not one for all
        graph = onnx.load(out / variant.network).graph
        constants = {one.name: one for one in graph.initializer}
        scales = [node.input[1] for node in graph.node if node.op_type == "DequantizeLinear"]
        assert max(constants[name].dims[0] for name in scales if constants[name].dims) > 8
    assert check_bundle(out, "cpu").ok
    fp32, other = (Networks.open(load_verified(out), "cpu", variant=name) for name in ("fp32", to))  # type: ignore[arg-type]
    image = np.random.default_rng(0).integers(60, 140, (1000, 1000)).astype(np.uint8)
    expected = fp32.embed(image)
    moved = np.abs(other.embed(image) - expected).max() / np.abs(expected).max()
    assert 0 < moved < 0.5
    assert variant.embedding_tolerance < 0.3


def test_a_variant_that_costs_more_than_it_may_is_refused(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_cost", lambda *_: Cost(1000, 0.8965, 0.9, 0.98))
    with pytest.raises(BundleError, match=r"may lose 0.3 points .*, fp16 loses 0.35, from 90.00 %"):
        run("quantise", work / "whole", "--to", "fp16", *options(work, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(module, "_cost", lambda *_: Cost(1000, 0.8975, 0.9, 0.98))
    run("quantise", work / "whole", "--to", "fp16", *options(work, tmp_path / "out"))
    with pytest.raises(BundleError, match="is not empty"):
        run("quantise", work / "whole", "--to", "fp16", *options(work, tmp_path / "out"))


def test_other_data_and_another_split_are_refused(work: Path, tmp_path: Path) -> None:
    data = load_data_set(work / "data")
    split = load_split(work / "cnn/split.json", data)
    other = draw_split(data, 99, (5, 5, 1))
    with pytest.raises(DataSetError, match="trained on another than"):
        add_variant(work / "whole", tmp_path / "out", "fp16", data, other)
    changed = load_data_set(work / "data")
    object.__setattr__(changed, "digest", "f" * 64)
    with pytest.raises(DataSetError, match="calibrated on the data its bundle was trained on"):
        add_variant(work / "whole", tmp_path / "out", "fp16", changed, split)


def test_int8_is_not_made_where_it_would_be_judged_wrongly(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "has_int8_products", lambda: False)
    with pytest.raises(BundleError, match=r"int8 is made on a processor that .* or takes --to fp16"):
        run("quantise", work / "whole", *options(work, tmp_path / "out"))


@pytest.mark.parametrize(
    ("pool", "is_written"),
    [
        ({"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}, True),
        ({"kernel_shape": [2, 3], "strides": [2, 2]}, True),
        ({"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, False),  # borders are means of fewer values
        ({"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, False),
    ],
)
def test_average_pools_are_written_as_the_convolutions_they_are(
    pool: dict[str, object], is_written: bool
) -> None:
    floats, shape = TensorProto.FLOAT, [1, 5, 9, 8]
    nodes = [
        helper.make_node("Relu", ["x"], ["active"], "relu"),
        helper.make_node("AveragePool", ["active"], ["pooled"], "pool", **pool),
        helper.make_node("Relu", ["pooled"], ["y"], "last"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [value("x", floats, shape)], [value("y", floats, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)

    def answer(model: onnx.ModelProto) -> np.ndarray:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, {"x": x})[0])

    expected = answer(model)
    inferred = onnx.shape_inference.infer_shapes(model)
    pools_to_convolutions(inferred.graph)
    assert [node.op_type for node in inferred.graph.node] == [
        "Relu",
        "Conv" if is_written else "AveragePool",
        "Relu",
    ]
    np.testing.assert_allclose(answer(inferred), expected, atol=1e-6)


def test_a_variant_made_again_has_one_section_in_the_card(tmp_path) -> None:
    card = tmp_path / "MODEL_CARD.md"
    card.write_text("# A card\n\nWith text.\n")
    for accuracy in (0.8, 0.9):
        note_in_card(card, "int8", Cost(10, accuracy, 0.9, 1.0), 20)
    text = card.read_text()
    assert text.startswith("# A card\n\nWith text.\n")
    assert text.count("## Variant int8") == 1
    assert "accuracy 0.9000 instead" in text
    assert "0.8000" not in text
    note_in_card(card, "fp16", Cost(10, 0.7, 0.9, 1.0), 0)
    note_in_card(card, "int8", Cost(10, 0.6, 0.9, 1.0), 20)
    text = card.read_text()
    assert [text.count(what) for what in ("With text", "## Variant int8", "## Variant fp16")] == [1, 1, 1]
    assert "accuracy 0.7000" in text
    assert "accuracy 0.6000" in text
