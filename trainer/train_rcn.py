"""Training of the recurrent network on a frozen CNN's embeddings, resumable at every epoch.

What is done stands in a recipe, see `trainer.rcn_recipe`.

Shapes: C copies, B stacks, N slices (padded), E embedding values, K classes.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from torch.nn import functional

from rcm_daemon.bundle.estimator import estimator_parameters
from rcm_daemon.errors import DataSetError
from trainer.data.split import z_steps
from trainer.networks.attention import ToeplitzAttention
from trainer.networks.rcn import RecurrentStrata
from trainer.onnx_recurrent import rcn_graph
from trainer.rcn_recipe import RcnRecipe
from trainer.run_folder import load_checkpoint, provenance
from trainer.schedule import learning_rate
from trainer.sequences import IGNORED, HeldOut, Sequence, pad, segmental_loss
from trainer.starting import is_bundle, open_start, origin, take_rcn
from trainer.training import run_epochs
from trainer.weight_average import WeightAverage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from trainer.data.manifest import DataSet
    from trainer.data.split import Split

RCN_SCHEMA = "rcm-rcn-1"
WIDEST_STEP_TO_STRIDE_UM = 2.5
MOST_SPARSE = 20
LIVE_FRACTIONS = (0.25, 0.5, 0.75, 1.0)
"""A segmental network is validated on so much of every stack."""


def train_rcn(
    data: DataSet,
    embeddings_CTE: np.ndarray,
    split: Split,
    recipe: RcnRecipe,
    out: Path,
    *,
    cnn_digest: str,
    device: torch.device,
    resume: bool = False,
    start_from: Path | None = None,
) -> dict[str, float]:
    """Train, validate after each epoch, keep the best snapshot.

    The best one has the highest validation accuracy; of a segmental network, the smallest segmental loss.

    Parameters
    ----------
    data
        The data set.
    embeddings_CTE
        float32 [1 + n_copies, n_slices, 256], rows laid out as `DataSet.starts` says.
    split
        Its train and validation patients are used.
    recipe
        What to do.
    out
        The run's folder, which gets its split, too.
    cnn_digest
        Digest of the CNN the embeddings come from, kept in the checkpoint.
    device
        Where the network runs.
    resume
        Go on from `last.pt`.
    start_from
        Weights to start from: an RCN checkpoint or a bundle of the same method and size. The mean and scale
        of the embeddings are those of this training set all the same.

    Returns
    -------
    dict
        Validation metrics of the best snapshot.

    Raises
    ------
    DataSetError
        If a part is empty, what to start from does not fit, or the run to resume was made with another
        recipe.
    """
    indices = {part: split.stack_indices(data, part) for part in ("train", "validation")}
    for part, stacks in indices.items():
        if len(stacks) == 0:
            raise DataSetError(
                f"a training needs stacks to train on and to validate on, the {part} part has none"
            )
    torch.manual_seed(recipe.seed)
    network = RecurrentStrata(recipe.architecture, recipe.recurrent_dropout, recipe.input_dropout)
    starts = data.starts
    if recipe.standardised:
        rows = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in indices["train"]])
        sample_XE = embeddings_CTE[:, rows].reshape(-1, embeddings_CTE.shape[2])
        network.input_mean.copy_(torch.from_numpy(sample_XE.mean(0)))
        network.input_scale.copy_(torch.from_numpy(sample_XE.std(0) + 1e-3))
    about = {**provenance(data, split, recipe.seed), "cnn_digest": cnn_digest}
    if start_from is not None and not resume:
        about["started_from"] = _start(network, start_from)
    network.to(device)
    average = WeightAverage(network, recipe.average_decay)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=recipe.learning_rate, eps=1e-7, weight_decay=recipe.weight_decay
    )
    training = _Training(data, torch.from_numpy(embeddings_CTE), indices["train"], recipe, device)
    validation = HeldOut(
        data,
        torch.from_numpy(embeddings_CTE[0]),
        indices["validation"],
        recipe.max_slices,
        device,
        LIVE_FRACTIONS if recipe.segmental else (1.0,),
    )
    split.write(out / "split.json")
    return run_epochs(
        out,
        "training the RCN",
        recipe,
        {"schema": RCN_SCHEMA, "provenance": about, "z_step_um": z_steps(data, split)},
        network,
        average,
        optimizer,
        n_batches=-(-len(indices["train"]) // recipe.batch_size),
        train=lambda epoch, advance, best: training.epoch(epoch, network, average, optimizer, advance, best),
        validate=validation.measure,
        rank=_merit,
        resume=resume,
    )


def _merit(measured: Mapping[str, float]) -> tuple[float, float]:
    """Rank a snapshot: the higher one is better."""
    if "segmental_loss" in measured:
        return -measured["segmental_loss"], 0.0
    return measured["accuracy"], -measured["loss"]


def load_rcn(path: Path) -> tuple[RecurrentStrata, dict[str, Any]]:
    """Load an RCN from its best snapshot, in evaluation mode, and the whole checkpoint."""
    checkpoint = load_checkpoint(path, RCN_SCHEMA)
    network = RecurrentStrata(RcnRecipe(**checkpoint["recipe"]).architecture)
    network.load_state_dict(checkpoint["average"] if "average" in checkpoint else checkpoint["network"])
    return network.eval(), checkpoint


def _start(network: RecurrentStrata, path: Path) -> str:
    if is_bundle(path):
        bundle = open_start(path)
        fitted = estimator_parameters(bundle)
        graph = onnx.load_from_string(bundle.files["rcn.onnx"]).graph
        take_rcn(network, graph, path, fitted.prior if fitted else None)
        return origin(bundle)
    other, checkpoint = load_rcn(path)
    take_rcn(network, rcn_graph(other).graph, path, other.likelihood.prior() if other.likelihood else None)
    return origin(checkpoint["provenance"])


class _Training:
    def __init__(
        self,
        data: DataSet,
        embeddings_CTE: torch.Tensor,
        stacks: np.ndarray,
        recipe: RcnRecipe,
        device: torch.device,
    ) -> None:
        self.data, self.embeddings_CTE, self.stacks = data, embeddings_CTE, stacks
        self.recipe, self.device = recipe, device

    def _draw(self, index: int, rng: np.random.Generator) -> Sequence:
        recipe, z_um = self.recipe, self.data.stacks[index].z_um
        kept = np.arange(len(z_um))
        if recipe.max_slices:
            kept = kept[: recipe.max_slices]
        if recipe.late_starts and rng.random() < recipe.late_starts:
            kept = kept[rng.integers(0, (len(kept) + 1) // 2) :]
        if recipe.prefixes and rng.random() < recipe.prefixes:
            kept = kept[: rng.integers(1, len(kept) + 1)]
        narrow = len(kept) > 1 and np.median(np.diff(z_um[kept])) <= WIDEST_STEP_TO_STRIDE_UM
        if recipe.strides and narrow and rng.random() < recipe.strides:
            kept = kept[rng.integers(0, 2) :: 2]
        if recipe.sparse and rng.random() < recipe.sparse:
            n_kept = min(len(kept), int(rng.integers(2, MOST_SPARSE + 1)))
            kept = np.sort(rng.choice(kept, n_kept, replace=False))
        if recipe.dropped_slices:
            there = rng.random(len(kept)) >= rng.uniform(0, recipe.dropped_slices)
            kept = kept[there] if there.any() else kept[:1]
        copy = int(rng.integers(len(self.embeddings_CTE)))
        drawn = Sequence.of(self.data, self.embeddings_CTE[copy], index, kept)
        if recipe.untrusted:
            weight = (rng.random(len(kept)) >= recipe.untrusted).astype(np.float32)
            drawn = replace(drawn, weight=torch.from_numpy(weight))
        return drawn

    def epoch(
        self,
        epoch: int,
        network: RecurrentStrata,
        average: WeightAverage[RecurrentStrata],
        optimizer: torch.optim.Optimizer,
        advance: Callable[[int, str], None],
        best: float,
    ) -> dict[str, float]:
        recipe = self.recipe
        torch.manual_seed(recipe.seed * 100_003 + epoch)
        rng = np.random.default_rng([recipe.seed, epoch])
        order = rng.permutation(self.stacks)
        n_batches = -(-len(order) // recipe.batch_size)
        network.train()
        n_seen, n_right, loss_sum, started, rate = 0, 0, 0.0, time.time(), recipe.learning_rate
        segmental_sum = 0.0
        for batch in range(n_batches):
            n_steps = (epoch - 1) * n_batches + batch
            if recipe.falling_rate:
                rate = learning_rate(n_steps / (recipe.n_epochs * n_batches), recipe.learning_rate)
            for group in optimizer.param_groups:
                group["lr"] = rate
            chosen = order[batch * recipe.batch_size : (batch + 1) * recipe.batch_size].tolist()
            drawn = pad([self._draw(index, rng) for index in chosen], self.device)
            logits_BNK, evidence_BNK = drawn.run(network)
            loss = functional.cross_entropy(
                logits_BNK.flatten(0, 1),
                drawn.labels_BN.flatten(),
                ignore_index=IGNORED,
                label_smoothing=recipe.label_smoothing,
            )
            if network.likelihood is not None and evidence_BNK is not None:
                boundaries = segmental_loss(network.likelihood, evidence_BNK, drawn)
                segmental_sum += boundaries.item() * len(chosen)
                loss = loss + recipe.segmental_weight * boundaries
            optimizer.zero_grad(set_to_none=True)
            penalised: torch.Tensor = loss + recipe.recurrent_l1 * network.recurrent_l1()
            penalised.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            average.update(network, n_steps + 1)
            n_slices = int(drawn.lengths_B.sum())
            n_seen += n_slices
            loss_sum += loss.item() * n_slices
            n_right += int((logits_BNK.argmax(2) == drawn.labels_BN).sum())
            text = f"epoch {epoch}/{recipe.n_epochs} loss {loss_sum / n_seen:.3f}"
            text += f" accuracy {n_right / n_seen:.3f}"
            advance(1, text + (f" best {best:.3f}" if best >= 0 else ""))
        values = {
            "loss": loss_sum / n_seen,
            "accuracy": n_right / n_seen,
            "learning_rate": rate,
            "recurrent_l1": network.recurrent_l1().item(),
            "seconds": time.time() - started,
        }
        if recipe.segmental:
            values["segmental_loss"] = segmental_sum / len(order)
        if isinstance(network.attention, ToeplitzAttention):
            values["kernel_self"] = network.attention.kernel()[recipe.half_width].item()
        return values
