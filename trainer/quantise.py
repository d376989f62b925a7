"""A bundle's CNN in 8-bit integers or half precision, beside the CNN itself, and what that costs in accuracy.

int8 is static and per channel, with quantise and dequantise nodes (QDQ): unsigned activations in ranges seen
on training slices, signed weights. Two things make it pay for narrow networks too, measured on one core with
AVX-512 VNNI: the first convolution, over one channel, stays in float32 (0.04 ms instead of 0.22), and average
pools become convolutions of one channel each with weights 1/n, which is the same (0.04 ms each instead of up
to 0.18 in ONNX Runtime's quantised pool). The last layer stays in float32 for the sake of what follows it.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from rcm_daemon.bundle.check import check_bundle
from rcm_daemon.bundle.golden import read_golden
from rcm_daemon.bundle.manifest import Manifest, rewrite_manifest
from rcm_daemon.bundle.processor import has_int8_products
from rcm_daemon.bundle.sessions import Networks
from rcm_daemon.bundle.signature import SIGNATURE_FILE
from rcm_daemon.bundle.verify import load_verified
from rcm_daemon.errors import BundleError, DataSetError
from trainer.data.prepared import fields_of_stack
from trainer.export import refuse_used_folder
from trainer.offline import run_bundles
from trainer.onnx_graphs import checked
from trainer.progress import progress_bar
from trainer.run_folder import this_command

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rcm_daemon.bundle.manifest import OtherVariant
    from trainer.data.manifest import DataSet, LabelledStack
    from trainer.data.split import Split

MOST_LOST = 0.003
"""Share of the validation slices that a variant may label worse in sum: 0.3 points of accuracy."""
LEAST_TOLERANCE = 1e-3
QUANTISED = ["Conv", "Relu", "MaxPool", "Concat"]


@dataclass(frozen=True)
class Cost:
    """What a variant costs on validation slices: accuracies, and the share that it labels as fp32 does."""

    n_slices: int
    accuracy: float
    accuracy_fp32: float
    agreement: float


def add_variant(
    bundle: Path,
    out: Path,
    to: OtherVariant,
    data: DataSet,
    split: Split,
    *,
    n_calibration: int = 256,
    seed: int = 0,
    n_workers: int = 2,
) -> Manifest:
    """Write a bundle anew with a variant in it, if it labels validation stacks as well as fp32 does.

    Parameters
    ----------
    bundle, out
        Bundle folder, and where the new one goes: a folder that is empty or not there.
    to
        Which variant; one of that name in the bundle is replaced.
    data, split
        The data set and split that the bundle was trained on. Ranges are taken from the train part, accuracy
        from the validation part; nothing else is looked at.
    n_calibration
        Slices that ranges are taken from.
    seed
        Of their choice.
    n_workers
        Processes that label validation stacks.

    Raises
    ------
    DataSetError
        The bundle was trained on other data or another split.
    BundleError
        `out` holds something, the bundle is no daemon's, this processor cannot judge int8, or the variant
        loses more than 0.3 points of accuracy.
    """
    verified = load_verified(bundle)
    manifest = verified.manifest
    _check_origin(verified.files["MODEL_CARD.md"].decode(), manifest, data, split, bundle)
    if manifest.kind == "context":
        raise BundleError(f"a variant is for bundles that a daemon serves, {bundle} needs neighbours: replay")
    if to == "int8" and not has_int8_products():
        raise BundleError(
            "int8 is made on a processor that adds int8 products in 32 bits (VNNI, dotprod), which this one "
            f"does not: {bundle} serves as it is, or takes --to fp16"
        )
    refuse_used_folder(out)
    n_used = n_calibration if to == "int8" else 0
    cnn = verified.files["cnn.onnx"]
    with tempfile.TemporaryDirectory() as scratch:
        draft = Path(scratch) / "draft"
        if to == "int8":
            stacks = [data.stacks[i] for i in split.stack_indices(data, "train")]
            graph = in_int8(cnn, _some_slices(stacks, n_calibration, seed), n_calibration, Path(scratch))
        else:
            graph = in_half(cnn)
        shutil.copytree(bundle, draft, ignore=shutil.ignore_patterns(SIGNATURE_FILE))
        (draft / "cnn.onnx").write_bytes(graph)
        rewrite_manifest(draft, manifest, provenance=_provenance(manifest))
        golden = read_golden(verified)
        embeddings = Networks.open(load_verified(draft), "cpu").embed_many(golden["slices"])
        stacks = [data.stacks[i] for i in split.stack_indices(data, "validation")]
        cost = _cost(bundle, draft, stacks, n_workers)
    if cost.accuracy < cost.accuracy_fp32 - MOST_LOST:
        raise BundleError(
            f"a variant may lose {100 * MOST_LOST:g} points of accuracy on validation stacks, {to} loses "
            f"{100 * (cost.accuracy_fp32 - cost.accuracy):.2f}, from {100 * cost.accuracy_fp32:.2f} %"
        )
    expected = golden["slice_embeddings"]
    # Another implementation of the same numbers is never farther off than the numbers themselves are.
    moved = float(np.abs(embeddings - expected).max() / np.abs(embeddings).max())
    variant: dict[str, Any] = {
        "network": f"cnn.{to}.onnx",
        "golden": f"golden.{to}.npz",
        "embedding_tolerance": max(moved, LEAST_TOLERANCE),
        "n_calibration_slices": n_used,
        "n_validation_slices": cost.n_slices,
        "accuracy": cost.accuracy,
        "accuracy_fp32": cost.accuracy_fp32,
        "agreement": cost.agreement,
    }
    shutil.copytree(bundle, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(SIGNATURE_FILE))
    (out / variant["network"]).write_bytes(graph)
    np.savez_compressed(out / variant["golden"], slice_embeddings=embeddings)
    note_in_card(out / "MODEL_CARD.md", to, cost, n_used)
    variants = manifest.model_dump(mode="json")["variants"] | {to: variant}
    written = rewrite_manifest(out, manifest, variants=variants, provenance=_provenance(manifest))
    report = check_bundle(out, "cpu")
    if not report.ok:
        fault = next(item for item in report.items if not item.ok)
        raise BundleError(
            f"a bundle with a variant must pass its check, {fault.what} did not: {fault.detail}"
        )
    return written


def _check_origin(card: str, manifest: Manifest, data: DataSet, split: Split, bundle: Path) -> None:
    if manifest.provenance.data_digest != data.digest:
        raise DataSetError(
            f"a variant is calibrated on the data its bundle was trained on, {bundle} was trained on others "
            f"than {data.path}"
        )
    if f"split digest {split.digest[:16]}" not in card:
        raise DataSetError(
            f"a variant is judged on the validation part of its bundle's own split, {bundle} was trained on "
            f"another than {split.digest[:16]}"
        )


def _provenance(manifest: Manifest) -> dict[str, Any]:
    provenance = manifest.provenance.model_dump(mode="json")
    return provenance | {"commands": [*provenance["commands"], this_command()]}


def _some_slices(stacks: Sequence[LabelledStack], n_slices: int, seed: int) -> Iterator[np.ndarray]:
    """Draw slices at the bundle's field, as many of one stack as of another, give or take one."""
    rng = np.random.default_rng(seed)
    chosen: dict[int, list[int]] = {}
    order = rng.permutation(len(stacks))
    for number in range(n_slices):
        stack = int(order[number % len(order)])
        chosen.setdefault(stack, []).append(int(rng.integers(stacks[stack].n_slices)))
    for stack, indices in chosen.items():
        of = stacks[stack]
        yield from fields_of_stack(
            replace(of, files=tuple(of.files[i] for i in indices), pages=tuple(of.pages[i] for i in indices))
        )


def in_int8(cnn: bytes, fields: Iterator[np.ndarray], n_fields: int, scratch: Path) -> bytes:
    """Quantise a CNN in ranges seen on `n_fields` slices; files on the way go into `scratch`."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    given, prepared, quantised = (scratch / name for name in ("cnn.onnx", "prepared.onnx", "int8.onnx"))
    given.write_bytes(cnn)
    quant_pre_process(given, prepared, skip_symbolic_shape=True)
    model = onnx.shape_inference.infer_shapes(onnx.load(prepared))
    pools_to_convolutions(model.graph)
    onnx.save(model, prepared)
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    followers = [node.name for node in model.graph.node if first.output[0] in node.input]
    with progress_bar("calibrating", n_fields, "slices") as advance:

        class Reader:
            def get_next(self) -> dict[str, np.ndarray] | None:
                field = next(fields, None)
                if field is None:
                    return None
                advance(1, "")
                return {"slices": field[None]}

        quantize_static(
            prepared,
            quantised,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            op_types_to_quantize=QUANTISED,
            nodes_to_exclude=[first.name, *followers],
        )
    return quantised.read_bytes()


def pools_to_convolutions(graph: onnx.GraphProto) -> None:
    """Write every average pool of known channels that counts its padding as the convolution it is."""
    shapes = {value.name: value.type.tensor_type.shape.dim for value in graph.value_info}
    for place, node in enumerate(list(graph.node)):
        options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        padded = any(options.get("pads", [])) and not options.get("count_include_pad", 0)
        if node.op_type != "AveragePool" or padded or options.get("ceil_mode", 0):
            continue
        n_channels, kernel = shapes[node.input[0]][1].dim_value, options["kernel_shape"]
        if not n_channels:
            continue
        weights = np.full((n_channels, 1, *kernel), 1 / np.prod(kernel), np.float32)
        graph.initializer.append(numpy_helper.from_array(weights, f"{node.name}_weights"))
        kept = {name: options[name] for name in ("kernel_shape", "pads", "strides") if name in options}
        inputs = [node.input[0], f"{node.name}_weights"]
        convolution = helper.make_node("Conv", inputs, node.output, node.name, group=n_channels, **kept)
        graph.node.remove(node)
        graph.node.insert(place, convolution)


def in_half(cnn: bytes) -> bytes:
    """Convert a CNN to half precision from its first convolution on; what it takes and gives stays as it is.

    Grey levels and their squares do not fit half precision, so what comes before stays in float32.
    """
    graph = onnx.load_from_string(cnn).graph
    start = [node.op_type for node in graph.node].index("Conv")
    before, network = list(graph.node[:start]), list(graph.node[start:])
    field, output = network[0].input[0], graph.output[0].name
    for node in network:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = {field: "field_half", output: "embeddings_half"}.get(name, name)
    used = {name for node in network for name in node.input}
    for weights in graph.initializer:
        if weights.name in used and weights.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(weights).astype(np.float16)
            weights.CopyFrom(numpy_helper.from_array(values, weights.name))
    casts = (
        helper.make_node("Cast", [field], ["field_half"], "to_half", to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["embeddings_half"], [output], "from_half", to=TensorProto.FLOAT),
    )
    nodes = [*before, casts[0], *network, casts[1]]
    model = checked(helper.make_graph(nodes, "cnn", graph.input, graph.output, graph.initializer))
    return bytes(model.SerializeToString())


def _cost(bundle: Path, draft: Path, stacks: Sequence[LabelledStack], n_workers: int) -> Cost:
    runs = run_bundles([bundle, draft], stacks, n_workers, "labelling validation stacks")
    truth = np.concatenate([run.stack.labels for run in runs])
    ours, theirs = (
        np.concatenate([run.probabilities[which].argmax(axis=1) for run in runs]) for which in (1, 0)
    )
    return Cost(
        len(truth),
        float(np.mean(ours == truth)),
        float(np.mean(theirs == truth)),
        float(np.mean(ours == theirs)),
    )


def note_in_card(card: Path, to: OtherVariant, cost: Cost, n_calibration: int) -> None:
    """Write what a variant costs into a bundle's model card, instead of what one made before did."""
    ranges = f", in ranges taken from {n_calibration} training slices" if n_calibration else ""
    others = re.sub(rf"\n## Variant {to}\n.*?(?=\n## |\Z)", "", card.read_text(), flags=re.DOTALL)
    card.write_text(
        f"""{others.rstrip()}

## Variant {to}

The same CNN in {to}{ranges}. On the {cost.n_slices} validation slices, by the network's largest probability:
accuracy {cost.accuracy:.4f} instead of {cost.accuracy_fp32:.4f}, the same label in {cost.agreement:.2%}.
"""
    )
