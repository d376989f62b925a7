"""Training of the single-image classifier, on a CPU or a GPU, resumable at every epoch.

Everything an epoch draws (slices, order, augmentation, dropout) follows from the seed and the epoch's number,
so a resumed run repeats what an unbroken one would have done.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from rcm_daemon.core.records import STRATA
from rcm_daemon.errors import DataSetError
from trainer.data.augmentation import Augmentation, Augmenter
from trainer.data.split import z_steps
from trainer.distances import compressed_distances, distance_loss
from trainer.metrics import confusion, label_metrics
from trainer.networks.inception import InceptionStrata
from trainer.precision import MixedPrecision
from trainer.run_folder import load_checkpoint, provenance, state_digest
from trainer.schedule import learning_rate
from trainer.starting import (
    fit_classifier,
    is_bundle,
    open_start,
    origin,
    settle_norms,
    take_cnn,
    take_state,
)
from trainer.teacher import Teacher
from trainer.training import run_epochs
from trainer.weight_average import WeightAverage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trainer.data.prepared import PreparedSet
    from trainer.data.split import Split

CNN_SCHEMA = "rcm-cnn-1"
VALIDATION_BATCH = 128
N_SETTLED, N_FITTED = 64, 512
"""Training slices from which a bundle's CNN gets its batch norms' statistics, and its classifier."""


@dataclass(frozen=True)
class CnnRecipe:
    """Everything that decides what a CNN training does, but for the data.

    Attributes
    ----------
    width, size, dropout, n_slices
        Of the network, see `InceptionStrata`.
    n_epochs, batch_size
        Length of training.
    slices_per_epoch
        Slices drawn (without replacement) in each epoch, 0 for all.
    learning_rate, weight_decay
        Peak rate and decay of AdamW; the rate rises over the first 5 % of steps, then falls as a cosine to 0.
    label_smoothing
        Share of the target spread over the other strata.
    average_decay
        Of the weight average that is validated and kept.
    norm_momentum
        Share of each batch in batch norm's running statistics; slower than torch's 0.1, which swings on few
        data.
    seed
        Of everything random.
    switched_off
        Kinds of augmentation left out.
    distance_weight
        Of the second task in the loss, see `trainer.distances`; 0 = strata alone.
    teacher_weight
        Share of the teacher's word in the loss of the strata, see `trainer.teacher`; the rest is the labels'.
    """

    width: float = 0.25
    size: int = 192
    dropout: float = 0.2
    n_slices: int = 1
    n_epochs: int = 30
    batch_size: int = 64
    slices_per_epoch: int = 0
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    label_smoothing: float = 0.05
    average_decay: float = 0.998
    norm_momentum: float = 0.03
    seed: int = 0
    switched_off: tuple[str, ...] = ()
    distance_weight: float = 0.0
    teacher_weight: float = 0.0

    def __post_init__(self) -> None:
        self.augmentation()

    def augmentation(self) -> Augmentation:
        """Return what slices go through in training; a kind to leave out that there is none of is refused."""
        return Augmentation().without(list(self.switched_off))

    def network(self) -> InceptionStrata:
        """Return the network it is about, untrained."""
        with_distances = self.distance_weight > 0
        return InceptionStrata(
            self.width, self.size, self.dropout, self.n_slices, with_distances=with_distances
        )


def train_cnn(
    prepared: PreparedSet,
    split: Split,
    recipe: CnnRecipe,
    out: Path,
    *,
    device: torch.device,
    precision: str = "auto",
    resume: bool = False,
    imagenet: Path | None = None,
    start_from: Path | None = None,
    teacher: Path | None = None,
) -> dict[str, float]:
    """Train, validate after each epoch, keep the best snapshot.

    Parameters
    ----------
    prepared
        Slices at the recipe's size.
    split
        Its train and validation patients are used.
    recipe
        What to do.
    out
        The run's folder: `split.json`, `last.pt`, `best.pt`, `metrics.jsonl`, `tensorboard/`.
    device, precision
        Where and in which number format, see `trainer.precision`.
    resume
        Go on from `last.pt`.
    imagenet, start_from
        Weights to start from: torchvision's Inception-V3 file; a CNN checkpoint or a bundle of the same
        width.
    teacher
        Run folder or checkpoint of the CNN to learn from; needed where the recipe gives it a weight.

    Returns
    -------
    dict
        Validation metrics of the best snapshot.

    Raises
    ------
    DataSetError
        If a part is empty, what to start or learn from does not fit, or the run to resume was made with
        another recipe.
    """
    rows = {
        part: prepared.slice_indices(split.stack_indices(prepared.data, part))
        for part in ("train", "validation")
    }
    for part, indices in rows.items():
        if len(indices) == 0:
            raise DataSetError(
                f"a training needs slices to train on and to validate on, the {part} part has none"
            )
    torch.manual_seed(recipe.seed)
    network = recipe.network()
    if imagenet is not None:
        network.load_imagenet(imagenet)
    about = provenance(prepared.data, split, recipe.seed)
    if start_from is not None and not resume:
        about["started_from"] = _start(network, start_from, prepared, rows["train"])
    taught_by = None
    if recipe.teacher_weight:
        taught_by = _teacher(teacher, recipe, split, device)
        about["teacher_digest"] = state_digest(taught_by.network.state_dict())
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = recipe.norm_momentum
    average = WeightAverage(network, recipe.average_decay)
    optimizer = torch.optim.AdamW(_groups(network, recipe.weight_decay), lr=recipe.learning_rate, fused=True)
    mixed = MixedPrecision(precision, device)
    torch.backends.cudnn.benchmark = True  # one size of batch: the search for the quickest kernels pays
    n_per_epoch = min(recipe.slices_per_epoch or len(rows["train"]), len(rows["train"]))
    n_batches = max(1, n_per_epoch // recipe.batch_size)
    run = _Run(
        prepared, rows["train"], network, average, optimizer, mixed, recipe, taught_by, n_batches, n_per_epoch
    )
    split.write(out / "split.json")
    return run_epochs(
        out,
        "training the CNN",
        recipe,
        {"schema": CNN_SCHEMA, "provenance": about, "z_step_um": z_steps(prepared.data, split)},
        network,
        average,
        optimizer,
        n_batches=n_batches,
        train=run.train_epoch,
        validate=lambda averaged: _validate(averaged, prepared, rows["validation"], device),
        rank=lambda measured: (measured["accuracy"],),
        resume=resume,
    )


@dataclass
class _Run:
    prepared: PreparedSet
    rows: np.ndarray
    network: InceptionStrata
    average: WeightAverage[InceptionStrata]
    optimizer: torch.optim.Optimizer
    mixed: MixedPrecision
    recipe: CnnRecipe
    teacher: Teacher | None
    n_batches: int
    n_per_epoch: int

    def train_epoch(self, epoch: int, advance: Callable[[int, str], None], best: float) -> dict[str, float]:
        recipe, device = self.recipe, self.mixed.device
        torch.manual_seed(recipe.seed * 100_003 + epoch)
        rng = np.random.default_rng([recipe.seed, epoch])
        drawn = rng.choice(self.rows, self.n_per_epoch, replace=False)
        generator = torch.Generator().manual_seed(recipe.seed * 100_003 + epoch)
        augmenter = Augmenter(recipe.augmentation(), generator)
        labels = self.prepared.labels
        distances = compressed_distances(self.prepared.data) if recipe.distance_weight else labels
        parameters = list(self.network.parameters())
        self.network.train()
        n_seen, read_s, started = 0, 0.0, time.perf_counter()
        loss_sum, n_right = torch.zeros((), device=device), torch.zeros((), device=device)
        distance_sum = torch.zeros((), device=device)
        for batch in range(self.n_batches):
            n_steps = (epoch - 1) * self.n_batches + batch
            rate = learning_rate(n_steps / (recipe.n_epochs * self.n_batches), recipe.learning_rate)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            rows = drawn[batch * recipe.batch_size : (batch + 1) * recipe.batch_size]
            read_from = time.perf_counter()
            slices = _read(self.prepared, rows, recipe.n_slices).to(device, non_blocking=True)
            labels_B = torch.from_numpy(labels[rows]).to(device, non_blocking=True)
            field = augmenter(slices) if recipe.n_slices == 1 else augmenter.with_neighbours(slices)
            read_s += time.perf_counter() - read_from
            with self.mixed:
                embedding_BE = self.network.embed(field)
                logits_BK = self.network.classify(embedding_BE)
                loss = functional.cross_entropy(
                    logits_BK.float(), labels_B, label_smoothing=recipe.label_smoothing
                )
                if self.teacher:
                    taught = functional.cross_entropy(logits_BK.float(), self.teacher.probabilities(field))
                    loss = torch.lerp(loss, taught, recipe.teacher_weight)
                if recipe.distance_weight:
                    wanted_B2 = torch.from_numpy(distances[rows]).to(device, non_blocking=True)
                    missed = distance_loss(self.network.distances(embedding_BE).float(), wanted_B2)
                    loss = loss + recipe.distance_weight * missed
                    distance_sum += missed.detach() * len(rows)
            self.mixed.step(loss, self.optimizer, parameters)
            self.average.update(self.network, n_steps + 1)
            n_seen += len(rows)
            loss_sum += loss.detach() * len(rows)
            n_right += (logits_BK.argmax(1) == labels_B).sum()
            if batch % 10 == 9 or batch == self.n_batches - 1:
                text = f"epoch {epoch}/{recipe.n_epochs} loss {loss_sum.item() / n_seen:.3f}"
                text += f" accuracy {n_right.item() / n_seen:.3f}" + (
                    f" best {best:.3f}" if best >= 0 else ""
                )
                advance(batch % 10 + 1, text)
        seconds = time.perf_counter() - started
        # Reading, warping and the network take turns on the same cores, so both rates are of one run. On a
        # GPU the warp runs on behind this clock, which then tells of reading alone.
        second = {"distance_loss": distance_sum.item() / n_seen} if recipe.distance_weight else {}
        return second | {
            "loss": loss_sum.item() / n_seen,
            "accuracy": n_right.item() / n_seen,
            "learning_rate": rate,
            "seconds": seconds,
            "images_per_second": n_seen / seconds,
            "images_read_per_second": n_seen / read_s,
        }


def load_cnn(path: Path) -> tuple[InceptionStrata, dict[str, Any]]:
    """Load a CNN from its best snapshot, in evaluation mode.

    Returns
    -------
    network
        The averaged network.
    checkpoint
        The whole checkpoint: recipe, provenance, metrics.
    """
    checkpoint = load_checkpoint(path, CNN_SCHEMA)
    recipe = CnnRecipe(**checkpoint["recipe"])
    network = recipe.network()
    network.load_state_dict(checkpoint["average"] if "average" in checkpoint else checkpoint["network"])
    return network.eval(), checkpoint


def _start(network: InceptionStrata, path: Path, prepared: PreparedSet, rows: np.ndarray) -> str:
    if not is_bundle(path):
        other, checkpoint = load_cnn(path)
        # A second task is no part of what is taken over.
        shared = {name: value for name, value in other.state_dict().items() if name in network.state_dict()}
        take_state(network, shared, path)
        return origin(checkpoint["provenance"])
    bundle = open_start(path)
    with_classifier = take_cnn(network, bundle)
    spread = rows[np.linspace(0, len(rows) - 1, min(len(rows), N_FITTED)).astype(np.int64)]
    settled = spread[:: max(1, len(spread) // N_SETTLED)]
    settle_norms(network, _read(prepared, settled, network.n_slices))
    if not with_classifier:
        fit_classifier(network, _read(prepared, spread, network.n_slices), prepared.labels[spread])
    return origin(bundle)


def _teacher(path: Path | None, recipe: CnnRecipe, split: Split, device: torch.device) -> Teacher:
    if path is None:
        raise DataSetError("a training with a teacher's weight needs a teacher, none was named")
    network, checkpoint = load_cnn(path)
    if checkpoint["provenance"]["split_digest"] != split.digest:
        raise DataSetError(
            f"a teacher must be trained on its student's split, or it would pass on the validation part, "
            f"{path} was trained on another"
        )
    return Teacher(network, recipe.n_slices, device)


def _read(prepared: PreparedSet, rows: np.ndarray, n_slices: int) -> torch.Tensor:
    """Slices [B, S, S], or with their neighbours [B, 3, S, S]."""
    wanted = rows if n_slices == 1 else prepared.with_neighbours(rows)
    return torch.from_numpy(prepared.slices[wanted])


def _groups(network: InceptionStrata, weight_decay: float) -> list[dict[str, Any]]:
    # Biases and batch norm are left out of weight decay: shrinking them only fights the data.
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _validate(
    network: InceptionStrata, prepared: PreparedSet, rows: np.ndarray, device: torch.device
) -> dict[str, float]:
    labels = prepared.labels[rows]
    logits = []
    with torch.inference_mode():
        for start in range(0, len(rows), VALIDATION_BATCH):
            slices = _read(prepared, rows[start : start + VALIDATION_BATCH], network.n_slices)
            logits.append(network(slices.to(device)).float().cpu())
    logits_BK = torch.cat(logits)
    metrics = label_metrics(confusion(labels, logits_BK.argmax(1).numpy()))
    values = {"loss": functional.cross_entropy(logits_BK, torch.from_numpy(labels)).item()}
    values["accuracy"] = metrics["accuracy"]
    return values | {f"sensitivity_{stratum}": metrics[f"sensitivity_{stratum}"] for stratum in STRATA}
