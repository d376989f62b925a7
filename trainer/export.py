"""Trained networks to a model bundle: two graphs, golden vectors, a model card, the manifest; then a check.

Shapes: N slices, R rows, C columns, E embedding values.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import torch

import rcm_daemon
from rcm_daemon.bundle.check import check_bundle
from rcm_daemon.bundle.manifest import (
    ESTIMATOR_FILE,
    Kind,
    Manifest,
    write_manifest,
)
from rcm_daemon.core.estimator import EstimatorParameters
from rcm_daemon.errors import BundleError, DataSetError
from rcm_daemon.simulator import make_phantom
from trainer.calibrate import read_calibration, uncalibrated
from trainer.data.prepared import FIELD_PIXEL_SIZE_UM, FIELD_SHAPE
from trainer.model_card import model_card, notice_of
from trainer.networks.inception import SliceEmbedder
from trainer.networks.rcn import RCN_INPUTS
from trainer.onnx_graphs import cnn_graph, head_graph
from trainer.onnx_recurrent import rcn_graph
from trainer.run_folder import state_digest, this_command, versions
from trainer.train_cnn import load_cnn
from trainer.train_rcn import load_rcn

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Answers = Callable[[np.ndarray, np.ndarray, np.ndarray], dict[str, np.ndarray]]

PROBABILITY_PARITY = 1e-5
EMBEDDING_PARITY = 5e-4
"""Largest differences between torch and ONNX Runtime; that of embeddings as a share of the largest one. Their
antialiased resizes differ by up to 0.007 grey levels, which the convolutions carry on."""
PARITY_LENGTHS = (1, 2, 7, 50, 101)
GOLDEN_SEED = 1
N_GOLDEN_STACK = 12
WIDEST_Z_STEP_UM = (1.5, 5.0)


def export_bundle(
    cnn: Path, rcn: Path | None, out: Path, *, name: str, version: str = rcm_daemon.__version__
) -> Manifest:
    """Write a bundle and check it.

    Parameters
    ----------
    cnn
        Run folder or checkpoint of the CNN.
    rcn
        That of the RCN trained on it; without one the bundle is of kind single, the CNN's own head, or of
        kind context where the CNN sees a slice between its neighbours.
    out
        Folder of the bundle, empty or not there yet.
    name, version
        Of the bundle.

    Returns
    -------
    Manifest
        The manifest written.

    Raises
    ------
    DataSetError
        If the RCN was trained on another CNN, or a checkpoint cannot be read.
    BundleError
        If `out` holds something, or ONNX Runtime does not compute what torch does.
    """
    refuse_used_folder(out)
    network, cnn_checkpoint = load_cnn(cnn)
    checkpoints = {"cnn": cnn_checkpoint}
    recurrent, half_width, max_slices = None, 0, 0
    kind: Kind = "single" if network.n_slices == 1 else "context"
    if rcn is not None:
        recurrent, checkpoints["rcn"] = load_rcn(rcn)
        architecture = recurrent.architecture
        kind = "partial" if architecture.window else "whole"
        half_width = architecture.half_width if architecture.attention == "toeplitz" else 0
        max_slices = architecture.max_slices if architecture.attention == "global" else 0
        if checkpoints["rcn"]["provenance"]["cnn_digest"] != state_digest(network.state_dict()):
            raise DataSetError(
                f"an RCN belongs to the CNN it was trained on, {rcn} was trained on another than {cnn}"
            )
    calibration = read_calibration(rcn, recurrent) if rcn is not None and recurrent is not None else None
    temperature = calibration["temperature"] if calibration else 1.0
    out.mkdir(parents=True, exist_ok=True)
    cnn_bytes = cnn_graph(network, FIELD_SHAPE).SerializeToString()
    graph = rcn_graph(recurrent, temperature) if recurrent else head_graph(network)
    rcn_bytes = graph.SerializeToString()
    (out / "cnn.onnx").write_bytes(cnn_bytes)
    (out / "rcn.onnx").write_bytes(rcn_bytes)
    estimator: EstimatorParameters | None = None
    if recurrent is not None and recurrent.likelihood is not None:
        estimator = uncalibrated(recurrent.likelihood.prior())
        if calibration:
            estimator = EstimatorParameters.model_validate_json(json.dumps(calibration["estimator"]))
        fields = estimator.model_dump(mode="json", by_alias=True)
        (out / ESTIMATOR_FILE).write_text(json.dumps(fields, indent=1) + "\n")

    def answers(embeddings_NE: np.ndarray, z_um_N: np.ndarray, weight_N: np.ndarray) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            rows = torch.from_numpy(embeddings_NE)
            if recurrent is None:
                return {"probabilities": torch.softmax(network.fc(torch.relu(rows)), -1).numpy()}
            stack = rows.unsqueeze(0), torch.tensor([len(rows)])
            if recurrent.evidence is None:
                return {"probabilities": torch.softmax(recurrent(*stack)[0], -1).numpy()}
            places = (torch.from_numpy(values).unsqueeze(0) for values in (z_um_N, weight_N))
            logits, evidence = recurrent.with_evidence(*stack, *places)
            # As the graph does: what is fed back is as trained, what is given is calibrated.
            probabilities = torch.softmax(logits[0].double() / temperature, -1).float()
            return {"probabilities": probabilities.numpy(), "evidence": evidence[0].numpy()}

    golden = _golden(SliceEmbedder(network), answers, min(N_GOLDEN_STACK, max_slices or N_GOLDEN_STACK))
    np.savez_compressed(out / "golden.npz", **golden)  # type: ignore[arg-type]
    parity = _parity(cnn_bytes, rcn_bytes, golden, answers, max_slices)
    provenance = _provenance(checkpoints)
    if calibration is not None:
        provenance["commands"].insert(-1, calibration["command"])
    z_step_um = checkpoints.get("rcn", cnn_checkpoint).get("z_step_um", WIDEST_Z_STEP_UM)
    phantom = all(checkpoint["provenance"].get("phantom", True) for checkpoint in checkpoints.values())
    notice = notice_of(phantom)
    card = model_card(name, version, checkpoints, provenance, notice, parity, estimator)
    (out / "MODEL_CARD.md").write_text(card)
    manifest = write_manifest(
        out,
        name=name,
        version=version,
        kind=kind,
        field_shape=FIELD_SHAPE,
        pixel_size_um=FIELD_PIXEL_SIZE_UM,
        z_step_um=(float(z_step_um[0]), float(z_step_um[1])),
        rcn_inputs=recurrent.architecture.inputs if recurrent else RCN_INPUTS,
        provenance=provenance,
        max_slices=max_slices,
        attention_half_width=half_width,
        notice=notice,
    )
    report = check_bundle(out, "cpu")
    if not report.ok:
        raise BundleError(
            f"an exported bundle must pass its own check, {report.items[-1].what} did not: "
            f"{report.items[-1].detail}"
        )
    return manifest


def refuse_used_folder(out: Path) -> None:
    """Refuse to write a bundle where anything lies, another bundle above all.

    Raises
    ------
    BundleError
        If the folder is not empty.
    """
    if out.exists() and any(out.iterdir()):
        raise BundleError(f"a bundle takes a folder of its own, {out} is not empty")


def _golden(embedder: SliceEmbedder, answers: Answers, n_slices: int) -> dict[str, np.ndarray]:
    # A phantom's slices whatever the training data were: a bundle must not carry a patient's images.
    phantom = make_phantom(GOLDEN_SEED, shape=FIELD_SHAPE, pixel_size_um=FIELD_PIXEL_SIZE_UM)
    indices = np.linspace(0, len(phantom) - 1, n_slices).round().astype(int)
    slices_NRC = np.stack([phantom.render(int(index)) for index in indices])
    if embedder.network.n_slices > 1:
        # Neighbours among the golden slices will do: what they show does not matter here.
        slices_NRC = np.stack([slices_NRC[:-2], slices_NRC[1:-1], slices_NRC[2:]], axis=1)
        indices = indices[1:-1]
    with torch.inference_mode():
        parts = [embedder(torch.from_numpy(slices_NRC[n : n + 1])).numpy() for n in range(len(slices_NRC))]
    embeddings_NE = np.concatenate(parts)
    shown = [len(indices) // 4, 3 * len(indices) // 4]
    z_um_N = phantom.z_um[indices].astype(np.float32)
    weight_N = np.ones(len(indices), np.float32)
    weight_N[len(indices) // 2] = 0.5
    return {
        "slices": slices_NRC[shown],
        "slice_embeddings": embeddings_NE[shown],
        "stack_embeddings": embeddings_NE,
        "stack_z_um": z_um_N,
        "stack_weight": weight_N,
        **{f"stack_{name}": values for name, values in answers(embeddings_NE, z_um_N, weight_N).items()},
    }


def _parity(
    cnn_bytes: bytes,
    rcn_bytes: bytes,
    golden: dict[str, np.ndarray],
    answers: Answers,
    max_slices: int,
) -> dict[str, float]:
    cnn, rcn = (
        onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        for model in (cnn_bytes, rcn_bytes)
    )
    for session, name, dimension in ((cnn, "cnn.onnx", "batch"), (rcn, "rcn.onnx", "n")):
        for value in (*session.get_inputs(), *session.get_outputs()):
            if value.shape[0] != dimension:
                raise BundleError(
                    f"the first dimension of {value.name} in {name} must be free, got {value.shape[0]}"
                )
    found = cnn.run(None, {"slices": golden["slices"]})[0]
    scale = np.abs(golden["slice_embeddings"]).max()
    differences = {"embeddings": float(np.abs(found - golden["slice_embeddings"]).max() / scale)}
    rng = np.random.default_rng(0)
    for n_slices in sorted({min(length, max_slices or length) for length in PARITY_LENGTHS}):
        rows = golden["stack_embeddings"]
        embeddings_NE = rows[rng.integers(len(rows), size=n_slices)]
        z_um_N = np.cumsum(rng.uniform(1, 8, n_slices)).astype(np.float32)
        weight_N = rng.choice([0.0, 0.5, 1.0], n_slices).astype(np.float32)
        expected = answers(embeddings_NE, z_um_N, weight_N)
        given = {"embeddings": embeddings_NE, "z_um": z_um_N, "weight": weight_N}
        feed = {value.name: given[value.name] for value in rcn.get_inputs()}
        for name, found in zip(expected, rcn.run(list(expected), feed), strict=True):
            differences[f"{name}_{n_slices}"] = float(np.abs(found - expected[name]).max())
    for what, difference in differences.items():
        allowed = EMBEDDING_PARITY if what == "embeddings" else PROBABILITY_PARITY
        if not difference <= allowed:
            raise BundleError(
                f"ONNX Runtime must agree with torch to {allowed:g}, {what} differ by {difference:.2g}"
            )
    return differences


def _provenance(checkpoints: dict[str, dict[str, Any]]) -> dict[str, Any]:
    last = list(checkpoints.values())[-1]["provenance"]
    metrics = {
        f"{network}_validation_{name}": float(value)
        for network, checkpoint in checkpoints.items()
        for name, value in checkpoint["metrics"].items()
        if np.isfinite(value)
    }
    return {
        "data_digest": last["data_digest"],
        "seed": last["seed"],
        "commands": [
            *(checkpoint["provenance"]["command"] for checkpoint in checkpoints.values()),
            this_command(),
        ],
        "versions": versions(),
        "created": datetime.now(UTC).date().isoformat(),
        "metrics": metrics,
    }
