"""Recorded stacks against the clock: `replay` with all it says, and the bare CNN in batches."""

from __future__ import annotations

import io
import time
from typing import TYPE_CHECKING

import numpy as np
import tifffile
from rich.console import Console

from rcm_daemon.bench.measured import REPLAY, BenchError
from rcm_daemon.bundle.cnn import network_file
from rcm_daemon.bundle.provider import open_session
from rcm_daemon.replay import open_for_replay
from rcm_daemon.reporting import ReplayOutputs, replay_all

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from numpy.typing import NDArray

    from rcm_daemon.bench.stream import Pictures
    from rcm_daemon.bundle.sessions import Networks
    from rcm_daemon.bundle.verify import VerifiedBundle

BATCHES = (1, 2, 4, 8, 16)
N_STACKS = 6


class Archive:
    """A stack on disk, replayed some times over, and what the CNN takes of it.

    Parameters
    ----------
    folder
        For the stack; the caller's to remove.
    fields
        uint8 [n, *cnn_shape], what the CNN takes of the slices.
    """

    def __init__(
        self,
        folder: Path,
        bundle: VerifiedBundle,
        networks: Networks,
        pictures: Pictures,
        fields: NDArray[np.uint8],
    ) -> None:
        self._path = folder / "archive.tif"
        pitch_um, z_um = pictures.pixel_size_um, pictures.z_um
        tifffile.imwrite(
            self._path,
            np.stack([pictures.image(index) for index in range(len(z_um))]),
            imagej=True,
            resolution=(1 / pitch_um, 1 / pitch_um),
            metadata={"axes": "ZYX", "spacing": z_um[-1] / max(1, len(z_um) - 1), "unit": "um"},
        )
        self._opened = open_for_replay(bundle, networks.provider, networks.variant)
        self._fields = fields
        self._sessions: dict[int, Any] = {}
        if networks.provider in ("cpu", "cuda"):  # others take more than an option to batch
            name = network_file(bundle.manifest, networks.variant)
            for size in BATCHES:
                session = open_session(bundle.files[name], name, networks.provider, 0, batch=size)
                self._sessions[size] = session

    def run(self) -> dict[str, float]:
        """Replay the stacks, and run the bare CNN over one in batches of each size; slices a second."""
        n = len(self._fields)
        begun_s = time.perf_counter()
        n_failed = replay_all(
            [self._path] * N_STACKS, self._opened, ReplayOutputs(), console=Console(file=io.StringIO())
        )
        if n_failed:
            raise BenchError(f"all {N_STACKS} stacks must be replayed to be timed, {n_failed} could not be")
        found = {REPLAY: N_STACKS * n / (time.perf_counter() - begun_s)}
        for size, session in self._sessions.items():
            if size > n:
                continue
            begun_s = time.perf_counter()
            for first in range(0, n - size + 1, size):
                session.run(["embeddings"], {"slices": self._fields[first : first + size]})
            found[f"batches of {size}"] = n // size * size / (time.perf_counter() - begun_s)
        return found
