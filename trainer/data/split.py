"""Patient-level split into train, validation, test and calibration: stratified, seeded, with a digest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rcm_daemon.core.records import STRATA
from rcm_daemon.errors import DataSetError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trainer.data.manifest import DataSet, LabelledStack

PARTS = ("train", "validation", "test", "calibration")
PAPER_SHARES = (245, 61, 198)
"""Stacks in each part of Bozkurt et al. 2021."""
TRAIN_ALL = (1, 0, 0, 0)


@dataclass(frozen=True)
class Split:
    """Which patients belong to which part.

    Attributes
    ----------
    seed, shares
        What it was first drawn with; shares are relative, in the order of `PARTS`.
    data_digest
        Digest of the data set it belongs to.
    patients
        Patients of each part.
    """

    seed: int
    shares: tuple[float, ...]
    data_digest: str
    patients: dict[str, tuple[str, ...]]

    @property
    def digest(self) -> str:
        """SHA-256 over everything the split says."""
        return hashlib.sha256(json.dumps(self._content(), sort_keys=True).encode()).hexdigest()

    def _content(self) -> dict[str, object]:
        return {
            "schema": "rcm-split-1",
            "seed": self.seed,
            "shares": list(self.shares),
            "data_digest": self.data_digest,
            "patients": {part: list(self.patients[part]) for part in PARTS},
        }

    def write(self, path: Path) -> None:
        """Write the split and its digest as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**self._content(), "digest": self.digest}, indent=1) + "\n")

    def stack_indices(self, data: DataSet, part: str) -> np.ndarray:
        """Give the indices into `data.stacks` of the stacks of one part, increasing."""
        patients = set(self.patients[part])
        return np.array([i for i, stack in enumerate(data.stacks) if stack.patient in patients], np.int64)


def draw_split(data: DataSet, seed: int, shares: Sequence[float] = PAPER_SHARES) -> Split:
    """Draw a split: whole patients, each part alike in stacks, strata and families.

    Patients are taken in random order, the ones with most stacks first, and each goes where it brings the
    parts nearest to their shares of stacks, of slices of every stratum, and of stacks of every family.

    Parameters
    ----------
    data
        The data set.
    seed
        Seed of the order.
    shares
        Relative sizes of train, validation and test, and of calibration where there is to be one; a part of
        share 0 stays empty.

    Raises
    ------
    DataSetError
        If the shares are not three or four non-negative numbers, or there are fewer patients than parts asked
        for.
    """
    shares = _checked_shares(shares)
    if shares[0] <= 0:
        raise DataSetError(f"a split must leave stacks to train on, got shares {list(shares)}")
    split = Split(seed, tuple(shares), data.digest, _drawn(data, data.stacks, seed, shares))
    check_split(split, data)
    return split


def parsed_shares(text: str) -> tuple[float, ...]:
    """Read shares as a command line gives them, joined by commas.

    Raises
    ------
    DataSetError
        If they are not three or four numbers from 0, one of them above 0.
    """
    try:
        return _checked_shares([float(share) for share in text.split(",")])
    except ValueError as error:
        raise DataSetError(f"shares must be three or four numbers joined by commas, got {text}") from error


def _checked_shares(shares: Sequence[float]) -> tuple[float, ...]:
    right_number = len(shares) in (len(PARTS) - 1, len(PARTS))
    if not right_number or not min(shares) >= 0 or not 0 < sum(shares) < np.inf:
        raise DataSetError(f"shares must be three or four numbers from 0, one above 0, got {list(shares)}")
    return (*map(float, shares), 0.0)[: len(PARTS)]


def _drawn(
    data: DataSet, stacks: Sequence[LabelledStack], seed: int, shares: Sequence[float]
) -> dict[str, tuple[str, ...]]:
    """Draw the patients of each part among those of some stacks of a set."""
    patients = np.array(list(dict.fromkeys(stack.patient for stack in stacks)))
    n_parts = sum(share > 0 for share in shares)
    if len(patients) < n_parts:
        new = "" if len(stacks) == len(data.stacks) else " new ones"
        raise DataSetError(
            f"a split into {n_parts} parts needs as many patients, {data.path} has {len(patients)}{new}"
        )
    families = sorted({stack.family for stack in stacks})
    traits = np.zeros((len(patients), 1 + len(STRATA) + len(families)))
    row_of = {patient: row for row, patient in enumerate(patients)}
    for stack in stacks:
        trait = traits[row_of[stack.patient]]
        trait[0] += 1
        trait[1 : 1 + len(STRATA)] += np.bincount(stack.labels, minlength=len(STRATA))
        trait[1 + len(STRATA) + families.index(stack.family)] += 1
    traits /= np.maximum(traits.sum(axis=0), 1e-9)
    wanted = np.array(shares, float)[:, None] / sum(shares) * traits.sum(axis=0)
    order = np.random.default_rng(seed).permutation(len(patients))
    order = order[np.argsort(-traits[order, 0], kind="stable")]
    missing = wanted.copy()
    part_of = np.full(len(patients), -1)
    for n_done, patient in enumerate(order):
        change = ((missing - traits[patient]) ** 2).sum(axis=1) - (missing**2).sum(axis=1)
        change[np.array(shares) == 0] = np.inf
        empty = [p for p in range(len(PARTS)) if shares[p] > 0 and p not in part_of]
        if len(empty) == len(patients) - n_done:  # the last patients go to the parts that have none yet
            change[[p for p in range(len(PARTS)) if p not in empty]] = np.inf
        part = int(np.argmin(change))
        part_of[patient] = part
        missing[part] -= traits[patient]
    return {name: tuple(sorted(patients[part_of == p].tolist())) for p, name in enumerate(PARTS)}


def load_split(path: Path, data: DataSet) -> Split:
    """Read a stored split and check it against its data set.

    Raises
    ------
    DataSetError
        If the file is no split, was changed, belongs to other data, or lets a patient into two parts.
    """
    split = _read(path, data)
    if split.data_digest != data.digest:
        raise DataSetError(
            f"a split belongs to one data set, {path} was drawn from other data than {data.path}"
        )
    return split


def extend_split(path: Path, data: DataSet, seed: int = 0, shares: Sequence[float] = TRAIN_ALL) -> Split:
    """Read a split of a set that has grown since: its patients stay where they are, new ones are drawn.

    Parameters
    ----------
    path
        The split of the set as it was.
    data
        The set as it is.
    seed
        Seed of the order in which the new patients are drawn.
    shares
        Relative sizes of the parts the new patients go to, in the order of `PARTS`; as they come, all are
        trained on.

    Raises
    ------
    DataSetError
        If the file is no split or was changed, or if the data lack a patient it names: then it was drawn from
        another set, and equal names need not be the same people. Also as `draw_split` does.
    """
    shares = _checked_shares(shares)
    old = _read(path)
    known = {patient for part in PARTS for patient in old.patients[part]}
    if gone := sorted(known - set(data.patients)):
        raise DataSetError(
            f"a split is extended to data that hold all its patients, {data.path} lacks {len(gone)} of "
            f"{path}, the first is {gone[0]}"
        )
    new = [stack for stack in data.stacks if stack.patient not in known]
    drawn = _drawn(data, new, seed, shares) if new else dict.fromkeys(PARTS, ())
    patients = {part: tuple(sorted({*old.patients[part], *drawn[part]})) for part in PARTS}
    split = Split(old.seed, old.shares, data.digest, patients)
    check_split(split, data)
    return split


def settle_split(
    data: DataSet,
    out: Path,
    *,
    split: Path | None = None,
    extended: Path | None = None,
    seed: int = 0,
    shares: str | None = None,
    new_shares: str = "",
) -> Split:
    """Find the split of a run: one named, one grown, one drawn, or the one its folder holds already.

    Parameters
    ----------
    data, out
        The data set, and the run's folder.
    split, extended
        A stored split to use, or one of the set when it was smaller.
    seed, shares, new_shares
        Of the draw: of all patients, or of those an extended split does not know. Without shares the run's
        own split is taken, and drawn with the paper's where there is none.

    Raises
    ------
    DataSetError
        As `load_split`, `extend_split`, `draw_split` and `parsed_shares` do; or if the run's own split is
        another than the one asked for.
    """
    named = [str(path) for path in (split, extended) if path] + [f"shares {shares}"] * (shares is not None)
    if len(named) > 1:
        raise DataSetError(f"a split is taken as it is, extended or drawn, got {' and '.join(named)}")
    path = out / "split.json"
    own = load_split(path, data) if path.is_file() else None
    if split:
        wanted, what = load_split(split, data), str(split)
    elif extended:
        wanted = extend_split(extended, data, seed, parsed_shares(new_shares))
        what = f"{extended} extended with seed {seed} and shares {new_shares}"
    elif own and shares is None and own.seed == seed:
        return own
    else:
        wanted = draw_split(data, seed, PAPER_SHARES if shares is None else parsed_shares(shares))
        what = f"one drawn with seed {seed} and shares {_written(wanted.shares)}"
    if own and own.digest != wanted.digest:
        raise DataSetError(
            f"a run keeps its split, {path} (seed {own.seed}, shares {_written(own.shares)}) is another than "
            f"{what}: remove it or name it with --split"
        )
    return wanted


def _written(shares: Sequence[float]) -> str:
    return ",".join(f"{share:g}" for share in shares)


def stored_digest(path: Path) -> str:
    """Digest of a stored split, whatever data it was drawn from.

    Raises
    ------
    DataSetError
        If the file is no split or was changed.
    """
    return _read(path).digest


def _read(path: Path, data: DataSet | None = None) -> Split:
    try:
        content = json.loads(path.read_text())
        split = Split(
            int(content["seed"]),
            tuple(map(float, content["shares"])),
            str(content["data_digest"]),
            {part: tuple(map(str, content["patients"][part])) for part in PARTS},
        )
        digest = content["digest"]
    except OSError as error:
        raise DataSetError(
            f"a split must be a readable file, {path} cannot be read: {error.strerror}"
        ) from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DataSetError(f"a split must be a JSON file written by this program, {path} is not") from error
    if data is not None:
        check_split(split, data)
    if digest != split.digest:
        raise DataSetError(
            f"a split must be left as it was drawn, the digest stored in {path} is not that of its patients"
        )
    return split


def check_split(split: Split, data: DataSet) -> None:
    """Refuse a split with a leak.

    Raises
    ------
    DataSetError
        If a patient stands in two parts, or a patient of the data in none.
    """
    seen: dict[str, str] = {}
    for part in PARTS:
        for patient in split.patients[part]:
            if patient in seen:
                raise DataSetError(
                    f"a patient must be in one part only, {patient} is in {seen[patient]} and in {part}"
                )
            seen[patient] = part
    missing = [patient for patient in data.patients if patient not in seen]
    if missing:
        raise DataSetError(
            f"every patient must be in a part, {len(missing)} are in none, the first is {missing[0]}"
        )


def z_steps(data: DataSet, split: Split) -> list[float]:
    """Smallest and largest median slice spacing of the training stacks in um, rounded to 0.01."""
    stacks = [data.stacks[index] for index in split.stack_indices(data, "train")]
    medians = [float(np.median(np.diff(stack.z_um))) for stack in stacks if stack.n_slices > 1]
    return [round(min(medians), 2), round(max(medians), 2)] if medians else [1.5, 5.0]
