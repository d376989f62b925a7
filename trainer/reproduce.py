"""The paper's whole comparison on one data set: every method trained once, kept, asked about the same stacks.

Each method has its folder under OUT with the digest of everything that decides it; a second run with the same
digests trains nothing, a killed one goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rcm_daemon.errors import DataSetError
from trainer.data.prepared import prepare
from trainer.data.split import draw_split, load_split
from trainer.embeddings import embed_set
from trainer.methods import METHODS
from trainer.networks.attention import ToeplitzAttention
from trainer.progress import whole_run
from trainer.rcn_recipe import RcnRecipe
from trainer.recipes import told
from trainer.reproduce_live import estimate_stacks
from trainer.reproduce_presets import TextonRecipe, recipe_of
from trainer.reproduce_textons import train_textons
from trainer.run_folder import LAST_NAME, state_digest
from trainer.scores import Prediction
from trainer.train_cnn import CnnRecipe, load_cnn, train_cnn
from trainer.train_rcn import load_rcn, train_rcn

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trainer.data.manifest import DataSet, LabelledStack
    from trainer.data.prepared import PreparedSet
    from trainer.data.split import Split
    from trainer.methods import Method
from trainer.reproduce_presets import Preset

CODE_VERSION = 1
"""Raised whenever a training or a prediction comes to give something else from the same data and recipe, as
when a recipe's default changes."""
STEP_NAME, PREDICTIONS_NAME = "step.json", "predictions.npz"
CNN_METHOD = "inception-v3"
N_AT_ONCE = 64


@dataclass(frozen=True)
class Comparison:
    """One comparison: the data it takes, how, and where everything is kept."""

    data: DataSet
    split: Split
    preset: Preset
    out: Path
    cache: Path
    device: torch.device
    precision: str = "auto"
    n_workers: int = 2

    @property
    def test_stacks(self) -> tuple[LabelledStack, ...]:
        """Stacks every method is scored on."""
        return tuple(self.data.stacks[index] for index in self.split.stack_indices(self.data, "test"))

    def recipe(self, method: Method) -> CnnRecipe | RcnRecipe | TextonRecipe:
        """Recipe of a method."""
        return recipe_of(method, self.preset, max(stack.n_slices for stack in self.data.stacks))


@dataclass(frozen=True)
class Predicted:
    """What one method says of the test stacks.

    Attributes
    ----------
    probabilities
        [n, 3] of each stack.
    kernel
        Of Toeplitz attention.
    seconds
        Time it took to train and ask.
    estimates
        What our estimator says of each stack; none for methods that are read as the paper reads them.
    """

    probabilities: tuple[np.ndarray, ...]
    kernel: tuple[float, ...]
    seconds: float
    estimates: tuple[Prediction, ...] = ()


def open_comparison(
    data: DataSet,
    preset: Preset,
    out: Path,
    cache: Path,
    device: torch.device,
    *,
    precision: str = "auto",
    n_workers: int = 2,
) -> Comparison:
    """Take the preset's stacks and their split, drawn once and stored in OUT.

    Raises
    ------
    DataSetError
        If OUT holds a comparison of other data, or there are too few patients for three parts.
    """
    taken = take_stacks(data, preset.n_stacks, preset.seed)
    path = out / "split.json"
    if path.is_file():
        split = load_split(path, taken)
    else:
        split = draw_split(taken, preset.seed, preset.shares)
        split.write(path)
    return Comparison(taken, split, preset, out, cache, device, precision, n_workers)


def take_stacks(data: DataSet, n_stacks: int, seed: int) -> DataSet:
    """Take whole patients at random until there are `n_stacks` stacks; 0 takes all."""
    if n_stacks == 0 or n_stacks >= len(data.stacks):
        return data
    patients: set[str] = set()
    names = np.array(data.patients)
    for patient in np.random.default_rng(seed).permutation(names).tolist():
        if sum(stack.patient in patients for stack in data.stacks) >= n_stacks:
            break
        patients.add(patient)
    stacks = tuple(stack for stack in data.stacks if stack.patient in patients)
    told = json.dumps([data.digest, [stack.stack for stack in stacks]])
    return replace(data, stacks=stacks, digest=hashlib.sha256(told.encode()).hexdigest())


def run_methods(comparison: Comparison, names: Sequence[str]) -> dict[str, Predicted]:
    """Train and ask every method, or take from OUT what is there.

    Parameters
    ----------
    comparison
        What to compare on.
    names
        Methods of `trainer.methods`, in the report's order.

    Returns
    -------
    dict
        Predictions by method, in the order of `names`.

    Raises
    ------
    DataSetError
        If a name is unknown, or a method's folder holds something else.
    """
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise DataSetError(f"a method must be one of {', '.join(METHODS)}, got {unknown[0]}")
    needed = list(dict.fromkeys(names))
    if CNN_METHOD not in needed and any(METHODS[name].trained_by == "rcn" for name in needed):
        needed.append(CNN_METHOD)
    order = sorted(needed, key=lambda name: (name != CNN_METHOD, list(METHODS).index(name)))
    todo = {name: _estimated_s(comparison, name) for name in order if not _is_done(comparison, name)}
    if todo:
        with whole_run("the whole comparison", sum(todo.values())) as whole:
            started, done_s = time.monotonic(), 0.0
            for number, (name, estimated_s) in enumerate(todo.items(), start=1):
                left = ""
                if done_s:
                    left_s = (time.monotonic() - started) * (sum(todo.values()) - done_s) / done_s
                    left = f", about {left_s / 60:.0f} min left"
                print(f"method {number} of {len(todo)}: {name}{left}", flush=True)
                whole.begin(name, estimated_s)
                _do(comparison, METHODS[name])
                done_s += estimated_s
    return {name: _load(comparison, name) for name in names}


def _key(comparison: Comparison, name: str) -> str:
    recipe = comparison.recipe(METHODS[name])
    content: dict[str, Any] = {
        "code": CODE_VERSION,
        "method": name,
        "data": comparison.data.digest,
        "split": comparison.split.digest,
        "recipe": told(recipe),
    }
    if isinstance(recipe, RcnRecipe):
        content["cnn"] = _step(comparison.out / CNN_METHOD).get("network_digest", "")
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _step(folder: Path) -> dict[str, Any]:
    path = folder / STEP_NAME
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _write_step(folder: Path, content: dict[str, Any]) -> None:
    part = folder / (STEP_NAME + ".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(folder / STEP_NAME)


def _is_done(comparison: Comparison, name: str) -> bool:
    folder = comparison.out / name
    step = _step(folder)
    same = step.get("key") == _key(comparison, name) and step.get("done", False)
    if METHODS[name].trained_by == "rcn":
        same = same and _is_done(comparison, CNN_METHOD)
    return bool(same) and (folder / PREDICTIONS_NAME).is_file()


def _begin(folder: Path, key: str) -> bool:
    """Make the method's folder ready; True where a training can go on from its last checkpoint."""
    step = _step(folder)
    if step.get("key") == key:
        return (folder / LAST_NAME).is_file()
    if folder.is_dir() and any(folder.iterdir()):
        if not step:
            raise DataSetError(f"a method's folder holds only its own files, {folder} holds others")
        shutil.rmtree(folder)  # of another recipe, data set or version
    folder.mkdir(parents=True, exist_ok=True)
    _write_step(folder, {"key": key})
    return False


def _do(comparison: Comparison, method: Method) -> None:
    folder, key = comparison.out / method.name, _key(comparison, method.name)
    resume, started = _begin(folder, key), time.monotonic()
    recipe = comparison.recipe(method)
    about: dict[str, Any] = {"key": key, "done": True, "recipe": asdict(recipe)}
    kernel: list[float] = []
    estimated: dict[str, np.ndarray] = {}
    if isinstance(recipe, CnnRecipe):
        probabilities, about["network_digest"] = _cnn(comparison, recipe, folder, resume)
    elif isinstance(recipe, RcnRecipe):
        probabilities, kernel, estimated = _rcn(comparison, recipe, folder, resume)
    else:
        texton_method: Any = method.name
        probabilities = train_textons(
            texton_method, comparison.data, comparison.split, recipe, folder, comparison.n_workers
        )
    part = folder / "predictions.part.npz"
    stacks = comparison.test_stacks
    np.savez(
        part,
        probabilities=probabilities.astype(np.float32),
        stacks=np.array([stack.stack for stack in stacks]),
        n_slices=np.array([stack.n_slices for stack in stacks]),
        kernel=np.array(kernel, np.float64),
        **estimated,  # type: ignore[arg-type]
    )
    part.replace(folder / PREDICTIONS_NAME)
    _write_step(folder, {**about, "seconds": round(time.monotonic() - started, 1)})


def _load(comparison: Comparison, name: str) -> Predicted:
    with np.load(comparison.out / name / PREDICTIONS_NAME) as stored:
        rows, lengths, kernel = stored["probabilities"], stored["n_slices"], stored["kernel"]
        ends = np.cumsum(lengths)[:-1]
        parts = np.split(rows, ends)
        estimates: tuple[Prediction, ...] = ()
        if "labels" in stored:
            labels = np.split(stored["labels"].astype(np.int64), ends)
            estimates = tuple(
                Prediction(own, (_there(first), _there(second)))
                for own, (first, second) in zip(labels, stored["boundaries_um"].tolist(), strict=True)
            )
    seconds = _step(comparison.out / name).get("seconds", 0.0)
    return Predicted(tuple(parts), tuple(kernel.tolist()), seconds, estimates)


def _there(um: float) -> float | None:
    return None if np.isnan(um) else um


def _prepared(comparison: Comparison, size: int) -> PreparedSet:
    return prepare(comparison.data, size, comparison.cache, comparison.n_workers)


def _cnn(comparison: Comparison, recipe: CnnRecipe, folder: Path, resume: bool) -> tuple[np.ndarray, str]:
    prepared = _prepared(comparison, recipe.size)
    train_cnn(
        prepared,
        comparison.split,
        recipe,
        folder,
        device=comparison.device,
        precision=comparison.precision,
        resume=resume,
    )
    network = load_cnn(folder)[0].to(comparison.device)
    rows = prepared.slice_indices(comparison.split.stack_indices(comparison.data, "test"))
    found = []
    with torch.inference_mode():
        for some in np.array_split(rows, -(-len(rows) // N_AT_ONCE)):
            wanted = some if recipe.n_slices == 1 else prepared.with_neighbours(some)
            slices = torch.from_numpy(prepared.slices[wanted]).to(comparison.device)
            found.append(torch.softmax(network(slices), -1).cpu().numpy())
    return np.concatenate(found), state_digest(network.state_dict())


def _rcn(
    comparison: Comparison, recipe: RcnRecipe, folder: Path, resume: bool
) -> tuple[np.ndarray, list[float], dict[str, np.ndarray]]:
    data, split, device = comparison.data, comparison.split, comparison.device
    cnn = load_cnn(comparison.out / CNN_METHOD)[0]
    digest = state_digest(cnn.state_dict())
    train, test = split.stack_indices(data, "train").tolist(), split.stack_indices(data, "test").tolist()
    wanted = {0: list(range(len(data.stacks)))}
    wanted.update(dict.fromkeys(range(1, recipe.n_copies + 1), train))
    embeddings = embed_set(cnn, _prepared(comparison, cnn.size), wanted, comparison.out / "cache", device)
    n_threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)  # steps over one slice are far too small to share between threads
    try:
        train_rcn(data, embeddings, split, recipe, folder, cnn_digest=digest, device=device, resume=resume)
    finally:
        torch.set_num_threads(n_threads)
    network = load_rcn(folder)[0]
    stacks = [data.stacks[index] for index in test]
    own = [embeddings[0, data.starts[index] : data.starts[index + 1]] for index in test]
    if network.likelihood is not None:
        probabilities, estimated = estimate_stacks(network, stacks, own)
        return probabilities, [], estimated
    found = []
    with torch.inference_mode():
        for rows_NE in own:
            logits = network(torch.from_numpy(rows_NE).unsqueeze(0), torch.tensor([len(rows_NE)]))[0]
            found.append(torch.softmax(logits, -1).numpy())
        toeplitz = network.attention if isinstance(network.attention, ToeplitzAttention) else None
        kernel = toeplitz.kernel().tolist() if toeplitz else []
    return np.concatenate(found), kernel, {}


def _estimated_s(comparison: Comparison, name: str) -> float:
    """Seconds a method may take on two CPU cores; only the proportions between methods count."""
    recipe = comparison.recipe(METHODS[name])
    n_train = len(comparison.split.stack_indices(comparison.data, "train"))
    n_slices = comparison.data.n_slices
    mean = n_slices / len(comparison.data.stacks)
    if isinstance(recipe, CnnRecipe):
        per_slice_s = 0.008 * (recipe.width / 0.25) ** 2 * (recipe.size / 192) ** 2
        per_epoch = min(recipe.slices_per_epoch or n_train * mean, n_train * mean)
        return float(n_slices * 0.02 + recipe.n_epochs * per_epoch * per_slice_s)
    if isinstance(recipe, RcnRecipe):
        return float(1 + recipe.n_epochs * n_train * 0.007)
    n_encoded = (recipe.n_fitted or n_train * mean) + n_slices * 0.4
    return float(0.2 * n_encoded + 0.2 * recipe.n_learnt)
