"""Phantoms run for a calibration, beside the stacks that were set apart for it.

They are run in parts, each kept in the cache once it is done: a stop costs one part, and who asks for more of
them later, or calibrates another recurrent network on the same CNN, has those again.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from zlib import crc32

from joblib import Memory

from rcm_daemon.simulator import TRAINING_FAMILIES
from trainer.data.phantoms import build_stack
from trainer.export import export_bundle
from trainer.offline import WHOLE, LeftOut, fresh_phantoms, run_bundles
from trainer.run_folder import state_digest
from trainer.train_cnn import load_cnn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainer.data.manifest import DataSet
    from trainer.offline import Planned, StackRun

PART = 500


def calibration_phantoms(
    data: DataSet, cnn: Path, n_stacks: int, n_workers: int, cache: Path, left_out: LeftOut = WHOLE
) -> list[StackRun]:
    """Run a CNN over phantoms that are not in a set of them, drawn by its digest.

    Parameters
    ----------
    data
        The set, of phantoms; its pitch is theirs.
    cnn
        Run folder or checkpoint of the CNN.
    n_stacks, n_workers
        How many, and how many processes run them.
    cache
        Folder that keeps each part that is done.
    left_out
        `WHOLE` or `trainer.beginnings.BEGINNINGS`; these are other phantoms than those.
    """
    kind = "calibration" if left_out == WHOLE else "beginnings"
    pixel_size_um = data.stacks[0].pixel_size_um
    planned = fresh_phantoms(data.digest, n_stacks, TRAINING_FAMILIES, kind, None, pixel_size_um)
    digest = state_digest(load_cnn(cnn)[0].state_dict())
    by_key = ["bundle", "planned", "left_out", "n_workers", "title"]
    run_part = Memory(cache / "calibration-phantoms", verbose=0).cache(_run_part, ignore=by_key)
    found: list[StackRun] = []
    with TemporaryDirectory() as folder:
        bundle = Path(folder) / "cnn"
        export_bundle(cnn, None, bundle, name="cnn")
        for start in range(0, n_stacks, PART):
            own = planned[start : start + PART]
            title = f"{kind}: phantoms {start + 1} to {start + len(own)} of {n_stacks}"
            found += run_part(_key(digest, own, left_out), bundle, own, left_out, n_workers, title)
    return found


def _key(cnn_digest: str, planned: Sequence[Planned], left_out: LeftOut) -> str:
    """Name all that a part depends on; the simulator by a picture it makes."""
    plans = [asdict(plan) for plan, _ in planned]
    parameters = {**asdict(planned[0][1]), "n_stacks": None}  # those that follow make no difference
    picture = crc32(build_stack(*planned[0]).render(0).tobytes())
    return json.dumps([cnn_digest, plans, parameters, asdict(left_out), picture])


def _run_part(
    key: str,
    bundle: Path,
    planned: Sequence[Planned],
    left_out: LeftOut,
    n_workers: int,
    title: str,
) -> list[StackRun]:
    return run_bundles([bundle], planned, n_workers, title, left_out)
