"""Build a data set's manifest from recorded stacks and a labels CSV, or say everything that is in the way.

Every slice is decoded once, through the daemon's own readers, so that what is imported will also train.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections import defaultdict
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from rcm_daemon.bundle.field import PITCH_TOLERANCE
from rcm_daemon.core.records import STRATA
from rcm_daemon.errors import DataSetError, StackFileError
from rcm_daemon.readers.opening import open_stack
from trainer.data.importing_labels import READERS, LabelledSlice, parse_word_map, read_labels
from trainer.data.manifest import MANIFEST_NAME, REQUIRED_COLUMNS
from trainer.data.tables import listed
from trainer.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    import numpy as np

IMAGE_SUFFIXES = (".bmp", ".png", ".jpg", ".jpeg")
TIFF_SUFFIXES = (".tif", ".tiff")
STACK = "\0"
"""Stands for a stack in what is wrong with several."""
N_FAULTS_SHOWN = 20


@dataclass(frozen=True)
class ImportedSet:
    """What an import made.

    Attributes
    ----------
    manifest
        The CSV written.
    n_stacks, n_patients
        How many.
    n_slices
        Number of slices of each stratum.
    warnings
        One sentence each: what was kept or left out, and should be looked at.
    """

    manifest: Path
    n_stacks: int
    n_patients: int
    n_slices: dict[str, int]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Scale:
    """What the caller says of all stacks, None where they are to say it themselves."""

    z_step_um: float | None
    pixel_size_um: float | None
    max_value: int | None


@dataclass
class _Findings:
    """What has been seen so far across all stacks."""

    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    unreadable: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    rows: list[dict[str, object]] = field(default_factory=list)
    patients: set[str] = field(default_factory=set)
    pitches: dict[float, list[str]] = field(default_factory=lambda: defaultdict(list))
    dim: list[str] = field(default_factory=list)
    places: dict[bytes, list[tuple[str, int]]] = field(default_factory=lambda: defaultdict(list))


def import_set(
    root: Path,
    labels: Path,
    out: Path,
    *,
    word_map: Sequence[str] = (),
    z_step_um: float | None = None,
    pixel_size_um: float | None = None,
    max_value: int | None = None,
) -> ImportedSet:
    """Check recorded stacks against a labels CSV and write their manifest.

    Parameters
    ----------
    root
        Folder that the stacks of the CSV lie in: VivaStack folders, folders of images, TIFF files.
    labels
        The CSV, one row a slice.
    out
        The manifest to write, or the folder to write `manifest.csv` in.
    word_map
        `word=stratum` for every label word that is not a stratum's own name.
    z_step_um, pixel_size_um
        Used as given where given; otherwise the stacks (or, for depths, the CSV) must state them.
    max_value
        Grey level of full scale of all stacks, where their camera has fewer bits than their files.

    Raises
    ------
    DataSetError
        Listing every fault: labels that are unknown, missing, too many or doubled, stacks that cannot be
        read, stacks without patient or with two, more than one pitch, the same image twice. Nothing is
        written then.
    """
    if not root.is_dir():
        raise DataSetError(f"stacks are imported from a folder, there is none at {root}")
    out = out if out.suffix.lower() == ".csv" else out / MANIFEST_NAME
    findings = _Findings()
    words = parse_word_map(word_map, findings.faults)
    stacks = read_labels(labels, words, findings.faults)
    if (out.parent / "stacks.csv").exists():
        findings.faults.append(f"an imported set must not lie among phantoms, {out.parent} holds stacks.csv")
    scale = _Scale(z_step_um, pixel_size_um, max_value)
    with progress_bar("reading stacks", len(stacks), "stacks") as advance:
        for name, rows in stacks.items():
            _check_names(name, rows, findings)
            _check_stack(root, name, rows, out.parent, scale, findings)
            advance(1, "")
    for fault, (first, *others) in findings.unreadable.items():
        alike = f" ({len(others)} more alike: {listed(others, ', ')})" if others else ""
        findings.faults.append(fault.replace(STACK, str(root / first)) + alike)
    if findings.dim:
        findings.warnings.append(
            f"16-bit slices with grey levels far below 65535 in {listed(findings.dim, ', ')}: "
            "if the camera has fewer bits, give its full scale with --max-value, 4095 for 12"
        )
    _check_pitch(findings)
    _check_doubles(findings)
    _look_for_others(root, stacks, findings)
    if findings.faults:
        shown = listed(findings.faults, n_shown=N_FAULTS_SHOWN)
        raise DataSetError(f"{root} cannot be imported: {shown}")
    _write(out, findings.rows)
    given = [row["label"] for row in findings.rows]
    counts = {name: given.count(name) for name in STRATA}
    return ImportedSet(out, len(stacks), len(findings.patients), counts, tuple(findings.warnings))


def _check_names(name: str, rows: list[LabelledSlice], findings: _Findings) -> None:
    for what, values in (("patient", {row.patient for row in rows}), ("site", {row.site for row in rows})):
        if len(values) > 1:
            shown = ", ".join(value or "none" for value in sorted(values))
            findings.faults.append(f"stack {name} must have one {what}, got {shown}")
        elif what == "patient" and values == {""}:
            findings.faults.append(f"stack {name} has no patient")
    findings.patients.update(row.patient for row in rows)


def _check_stack(
    root: Path,
    name: str,
    rows: list[LabelledSlice],
    out_folder: Path,
    scale: _Scale,
    findings: _Findings,
) -> None:
    depths = {row.slice: row.z_um for row in rows if row.z_um is not None}
    try:
        # Depths of the CSV count where it has them; a step is named only so that stacks that state none open.
        scale = replace(scale, z_step_um=1.0) if depths else scale
        with open_stack(root / name, **vars(scale)) as stack:
            whole = _check_numbers(name, rows, stack.n_slices, findings.faults)
            if depths:
                whole = _check_depths(name, depths, stack.n_slices, findings.faults) and whole
            findings.pitches[stack.pixel_size_um].append(name)
            images = (stack.read(index) for index in range(stack.n_slices))
            brightest = _digest_slices(name, images, findings)
            if stack.is_dim(brightest):
                findings.dim.append(f"{name} (at most {brightest})")
            z_um = [depths[i] for i in range(stack.n_slices)] if depths and whole else stack.z_um
            pitch = stack.pixel_size_um
    except StackFileError as error:
        findings.unreadable[str(error).replace(str(root / name), STACK)].append(name)
        return
    if not whole or any("label" not in row.strata for row in rows):
        return
    rows = sorted(rows, key=lambda row: z_um[row.slice])
    _warn_of_turns(name, rows, findings)
    file = Path(os.path.relpath(root / name, out_folder)).as_posix()
    for row in rows:
        cells = {"stack": name, "patient": row.patient, "site": row.site, "file": file, "slice": row.slice}
        cells |= {"z_um": round(z_um[row.slice], 6), "pixel_size_um": pitch}
        if scale.max_value is not None:
            cells["max_value"] = scale.max_value
        findings.rows.append({**cells, **row.strata})


def _check_numbers(name: str, rows: list[LabelledSlice], n_slices: int, faults: list[str]) -> bool:
    """Whether every slice has one label, and every label a slice."""
    first: dict[int, int] = {}
    n_before = len(faults)
    for row in rows:
        if row.slice in first:
            faults.append(
                f"row {row.row} repeats slice {row.slice} of stack {name}, first in row {first[row.slice]}"
            )
        first.setdefault(row.slice, row.row)
    missing, extra = set(range(n_slices)) - first.keys(), first.keys() - set(range(n_slices))
    hint = " (slices are numbered from 0)" if (missing, extra) == ({0}, {n_slices}) else ""
    if missing:
        faults.append(
            f"every slice needs a label, stack {name} of {n_slices} slices has none for "
            f"{_slices(missing)}{hint}"
        )
    if extra:
        faults.append(f"stack {name} has {n_slices} slices, but there are labels for {_slices(extra)}{hint}")
    return len(faults) == n_before


def _check_depths(name: str, depths: dict[int, float], n_slices: int, faults: list[str]) -> bool:
    n_before = len(faults)
    if missing := set(range(n_slices)) - depths.keys():
        faults.append(
            f"z_um must stand for all slices of a stack or none, stack {name} has none for {_slices(missing)}"
        )
    at: dict[float, list[int]] = defaultdict(list)
    for index, z_um in depths.items():
        at[z_um].append(index)
    doubled = [f"{z_um:g} um for {_slices(found)}" for z_um, found in at.items() if len(found) > 1]
    if doubled:
        said = listed(doubled, ", ")
        faults.append(f"two slices of a stack must not have one z_um, stack {name} has {said}")
    return len(faults) == n_before


def _digest_slices(name: str, images: Iterable[np.ndarray], findings: _Findings) -> int:
    """Note what tells slices that come twice; returns the largest grey level."""
    blank = set()
    brightest = 0
    for index, image in enumerate(images):
        brightest = max(brightest, int(image.max()))
        if image.min() == image.max():
            blank.add(index)
            continue
        head = f"{image.dtype} {image.shape} ".encode()
        findings.places[hashlib.blake2b(head + image.tobytes(), digest_size=16).digest()].append(
            (name, index)
        )
    if blank:
        findings.warnings.append(f"slices of one grey level only in stack {name}: {_runs(blank)}")
    return brightest


def _warn_of_turns(name: str, rows: list[LabelledSlice], findings: _Findings) -> None:
    found = [
        f"slice {below.slice} ({below.strata['label']} below {above.strata['label']})"
        for above, below in pairwise(rows)
        if STRATA.index(below.strata["label"]) < STRATA.index(above.strata["label"])
    ]
    if found:
        findings.warnings.append(f"labels of stack {name} run backwards with depth at {listed(found, ', ')}")


def _check_pitch(findings: _Findings) -> None:
    # Resolution tags are ratios of whole numbers: equal pitches may differ in their last digits.
    if findings.pitches and max(findings.pitches) > min(findings.pitches) * (1 + PITCH_TOLERANCE):
        shown = ", ".join(
            f"{pitch:g} um in {listed(names, ', ')}" for pitch, names in findings.pitches.items()
        )
        findings.faults.append(
            f"all stacks must have one pitch, got {shown}: if a file states a wrong one, give --pixel-size-um"
        )


def _check_doubles(findings: _Findings) -> None:
    shared: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for (first, index), *others in findings.places.values():
        for other, other_index in others:
            shared[first, other].append((index, other_index))
    for (first, other), pairs in shared.items():
        n = f"{len(pairs)} image{'s' * (len(pairs) > 1)}"
        where = f"slice {pairs[0][0]} of {first} is slice {pairs[0][1]} of {other}"
        findings.faults.append(f"an image must come once, {n} came again: {where}")


def _look_for_others(root: Path, labelled: Iterable[str], findings: _Findings) -> None:
    known = set(labelled)
    others = set()
    for folder, _, files in os.walk(root):
        below = Path(folder).relative_to(root).as_posix()
        for file in files:
            suffix = Path(file).suffix.lower()
            stack = (Path(below) / file).as_posix() if suffix in TIFF_SUFFIXES else below
            if suffix in (*TIFF_SUFFIXES, *IMAGE_SUFFIXES) and not {stack, below} & known:
                others.add(stack)
    if others:
        findings.warnings.append(f"without labels, so left out: {listed(sorted(others), ', ')}")


def _slices(numbers: Collection[int]) -> str:
    return f"slice{'s' * (len(numbers) > 1)} {_runs(numbers)}"


def _runs(numbers: Iterable[int]) -> str:
    """Write numbers as runs: 0, 3-5."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    optional = ("max_value", *READERS)
    columns = [*REQUIRED_COLUMNS, *(name for name in optional if any(name in row for row in rows))]
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(unfinished, path)
