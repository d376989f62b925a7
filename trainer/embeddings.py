"""Embeddings of a data set, computed once by a trained CNN and cached by its digest.

Beside the plain embeddings, augmented copies can be had, one augmentation a whole stack: a CNN knows the
slices it was trained on too well, and a recurrent network trained only on those over-confident embeddings
trusts them too far on new stacks.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import torch

from trainer.data.augmentation import Augmentation, Augmenter
from trainer.networks.inception import EMBEDDING_SIZE
from trainer.progress import progress_bar
from trainer.run_folder import state_digest

if TYPE_CHECKING:
    from pathlib import Path

    from trainer.data.prepared import PreparedSet
    from trainer.networks.inception import InceptionStrata

SAVE_EVERY_S = 30.0
"""A stop costs no more than this; each time the whole file is written, 1 kB a slice."""


def embed_set(
    network: InceptionStrata,
    prepared: PreparedSet,
    wanted: dict[int, list[int]],
    cache: Path,
    device: torch.device,
) -> np.ndarray:
    """Embed stacks, taking from the cache what is there.

    Parameters
    ----------
    network
        The CNN, in evaluation mode.
    prepared
        Slices at its size.
    wanted
        For each copy (0 is plain, 1 and on are augmented) the indices of the stacks to embed.
    cache
        Folder for cached embeddings.
    device
        Where the CNN runs, in float32.

    Returns
    -------
    np.ndarray
        float32 [1 + highest copy, n_slices, 256], rows as in `prepared.slices`; rows never asked for are 0.
    """
    folder = cache / f"embeddings-{state_digest(network.state_dict())[:16]}-{prepared.data.digest[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as quick on a CPU
    missing: dict[int, np.ndarray] = {}
    arrays: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for copy in range(max(wanted) + 1):
        path = folder / f"copy-{copy}.npz"
        if path.is_file():
            with np.load(path) as stored:
                arrays[copy] = stored["embeddings"], stored["done"]
        else:
            shape = (prepared.data.n_slices, EMBEDDING_SIZE)
            arrays[copy] = np.zeros(shape, np.float32), np.zeros(len(prepared.data.stacks), bool)
        stacks = np.array(wanted.get(copy, []), np.int64)
        missing[copy] = stacks[~arrays[copy][1][stacks]]
    n_missing = sum(len(stacks) for stacks in missing.values())
    if n_missing:
        with progress_bar("embedding slices", n_missing, "stacks") as advance:
            for copy, stacks in missing.items():
                embeddings, done = arrays[copy]
                saved_s = time.monotonic()
                for n_done, index in enumerate(stacks.tolist(), start=1):
                    rows = prepared.slice_indices(np.array([index]))
                    embeddings[rows] = _embed_stack(network, prepared.slices[rows], copy, index, device)
                    done[index] = True
                    advance(1, "")
                    if n_done == len(stacks) or time.monotonic() - saved_s > SAVE_EVERY_S:
                        _store(folder / f"copy-{copy}.npz", embeddings, done)
                        saved_s = time.monotonic()
    return np.stack([arrays[copy][0] for copy in range(max(wanted) + 1)])


@torch.inference_mode()
def _embed_stack(
    network: InceptionStrata, slices: np.ndarray, copy: int, index: int, device: torch.device
) -> np.ndarray:
    slices_BSS = torch.from_numpy(slices).to(device).float()
    if copy:
        # The seed names the copy and the stack, so that a cache filled in any order is the same.
        generator = torch.Generator().manual_seed(copy * 1_000_003 + index)
        slices_BSS = Augmenter(Augmentation(), generator).same_for_all(slices_BSS)
    return np.concatenate([network.embed(part).cpu().numpy() for part in torch.split(slices_BSS, 64)])


def _store(path: Path, embeddings: np.ndarray, done: np.ndarray) -> None:
    part = path.with_suffix(".part.npz")
    np.savez(part, embeddings=embeddings, done=done)
    part.replace(path)
