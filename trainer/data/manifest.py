"""The data-set manifest, CSV or Parquet, a row a slice; and all that can be wrong with it, said at once.

Columns: stack, patient, site, file, slice, z_um, pixel_size_um, label, and optionally family, max_value,
reader_1, reader_2, true_label. `file` is relative to the manifest, `slice` the 0-based page in it, `label`
the readers' consensus.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rcm_daemon.core.records import STRATA
from rcm_daemon.errors import DataSetError
from trainer.data.tables import listed, need_columns, read_table

if TYPE_CHECKING:
    from pathlib import Path

MANIFEST_NAME, PARQUET_NAME = "manifest.csv", "manifest.parquet"
REQUIRED_COLUMNS = ("stack", "patient", "site", "file", "slice", "z_um", "pixel_size_um", "label")
STACKS_NAME = "stacks.csv"
STACK_BOUNDARIES = ("epidermis_dej_um", "dej_dermis_um")
OPTIONAL_LABELS = ("reader_1", "reader_2", "true_label")
N_FAULTS_SHOWN = 20
MAX_GREY = 65_535


@dataclass(frozen=True)
class LabelledStack:
    """One stack of a data set, its slices in order of depth.

    Attributes
    ----------
    stack, patient, site, family
        Names; family is empty where the manifest has none.
    files
        One absolute path a slice (they may all be the same file).
    pages
        0-based page of each slice in its file.
    z_um
        Depths in um, increasing, float64 [n].
    pixel_size_um
        Pixel pitch in um.
    labels
        Readers' consensus, int64 [n], indices into STRATA.
    readings
        Further labels by column name (reader_1, reader_2, true_label), each int64 [n]; absent columns are
        absent.
    boundaries_um
        Both boundaries by the readers' consensus, also where they lie beyond the slices; None where only the
        labels tell.
    max_value
        Grey level of full scale, 0 = the largest of its files' 8 or 16 bits.
    """

    stack: str
    patient: str
    site: str
    family: str
    files: tuple[Path, ...]
    pages: tuple[int, ...]
    z_um: np.ndarray
    pixel_size_um: float
    labels: np.ndarray
    readings: dict[str, np.ndarray]
    boundaries_um: tuple[float | None, float | None] | None = None
    max_value: int = 0

    @property
    def n_slices(self) -> int:
        """Number of slices."""
        return len(self.pages)


@dataclass(frozen=True)
class DataSet:
    """A validated data set.

    Attributes
    ----------
    path
        The manifest file.
    digest
        SHA-256 of the manifest's bytes and of every file's name and size.
    stacks
        In the manifest's order.
    """

    path: Path
    digest: str
    stacks: tuple[LabelledStack, ...]

    @property
    def patients(self) -> tuple[str, ...]:
        """Patients in order of first appearance."""
        return tuple(dict.fromkeys(stack.patient for stack in self.stacks))

    @property
    def n_slices(self) -> int:
        """Number of slices of all stacks."""
        return sum(stack.n_slices for stack in self.stacks)

    @property
    def starts(self) -> np.ndarray:
        """Index of each stack's first slice when all slices are laid end to end, int64 [n_stacks + 1]."""
        return np.concatenate([[0], np.cumsum([stack.n_slices for stack in self.stacks])]).astype(np.int64)

    @property
    def is_phantom(self) -> bool:
        """Whether the set was written by the simulator (stacks.csv lies beside the manifest)."""
        return (self.path.parent / STACKS_NAME).is_file()


def load_data_set(path: Path) -> DataSet:
    """Read and validate a manifest.

    Parameters
    ----------
    path
        The manifest, or the folder that holds `manifest.csv` or `manifest.parquet`.

    Raises
    ------
    DataSetError
        Listing every fault: unreadable numbers, unknown labels, missing files, a stack with two patients or
        two pitches, repeated slices or depths, a patient without a name.
    """
    if path.is_dir():
        in_parquet = (path / PARQUET_NAME).is_file() and not (path / MANIFEST_NAME).is_file()
        path = path / (PARQUET_NAME if in_parquet else MANIFEST_NAME)
    table = read_table(path, "a data set needs a manifest in CSV or Parquet")
    rule = f"a manifest needs the columns {', '.join(REQUIRED_COLUMNS)}"
    need_columns(table, REQUIRED_COLUMNS, path, rule)
    rows_of: dict[str, list[_Row]] = defaultdict(list)
    faults: list[str] = []
    for number, cells in enumerate(table.rows, start=table.first_row):
        row = _parse_row(cells, path.parent, f"row {number}", faults)
        if row is not None:
            rows_of[row.stack].append(row)
    sizes = _sizes({row.file for rows in rows_of.values() for row in rows}, faults)
    for rows in rows_of.values():
        _check_stack(rows, faults)
    if not rows_of and not faults:
        faults.append("it has no rows")
    if faults:
        shown = listed(faults, n_shown=N_FAULTS_SHOWN)
        raise DataSetError(f"{path} is not a usable manifest: {shown}")
    digest = hashlib.sha256(table.content)
    for file in sorted(sizes):
        digest.update(f"{file.name}:{sizes[file]};".encode())
    known_um = _known_boundaries(path.parent / STACKS_NAME)
    stacks = tuple(_stack(rows, known_um.get(name)) for name, rows in rows_of.items())
    return DataSet(path, digest.hexdigest(), stacks)


def _known_boundaries(path: Path) -> dict[str, tuple[float, float]]:
    """Boundaries of every stack from the table the simulator writes beside a manifest; none without it."""
    if not path.is_file():
        return {}
    rows = read_table(path, "a table of stacks must be CSV").rows
    first, second = STACK_BOUNDARIES
    try:
        return {row["stack"]: (float(row[first]), float(row[second])) for row in rows}
    except (KeyError, ValueError) as error:
        raise DataSetError(
            f"a table of stacks must give stack, {first} and {second} of each, "
            f"{path} lacks or garbles {error}"
        ) from error


@dataclass(frozen=True)
class _Row:
    where: str
    stack: str
    patient: str
    site: str
    family: str
    file: Path
    page: int
    z_um: float
    pixel_size_um: float
    max_value: int
    label: int
    readings: dict[str, int]


def _parse_row(cells: dict[str, str], folder: Path, where: str, faults: list[str]) -> _Row | None:
    before = len(faults)
    named = ("stack", "patient", "file")
    faults.extend(f"{where} has no {name}" for name in named if not (cells.get(name) or "").strip())
    numbers = {}
    for name, rule in (("slice", "a whole number from 0"), ("z_um", "a depth"), ("pixel_size_um", "above 0")):
        try:
            value = float(cells[name])
        except (TypeError, ValueError):
            value = math.nan
        good = math.isfinite(value)
        if name == "slice":
            good = good and value >= 0 and value == int(value)
        if name == "pixel_size_um":
            good = good and value > 0
        if not good:
            faults.append(f"{where}: {name} must be {rule}, got {cells[name]!r}")
        numbers[name] = value
    given = (cells.get("max_value") or "").strip() or "0"
    try:
        max_value = float(given)
    except ValueError:
        max_value = math.nan
    if not (0 <= max_value <= MAX_GREY and max_value.is_integer()):
        faults.append(f"{where}: max_value must be a whole number from 0 to {MAX_GREY}, got {given!r}")
    labels = {}
    for name in ("label", *OPTIONAL_LABELS):
        word = (cells.get(name) or "").strip()
        if word in STRATA:
            labels[name] = STRATA.index(word)
        elif word or name == "label":
            faults.append(f"{where}: {name} must be one of {', '.join(STRATA)}, got {word!r}")
    if len(faults) > before:
        return None
    return _Row(
        where=where,
        stack=cells["stack"].strip(),
        patient=cells["patient"].strip(),
        site=(cells["site"] or "").strip(),
        family=(cells.get("family") or "").strip(),
        file=(folder / cells["file"].strip()).resolve(),
        page=int(numbers["slice"]),
        z_um=numbers["z_um"],
        pixel_size_um=numbers["pixel_size_um"],
        max_value=int(max_value),
        label=labels.pop("label"),
        readings=labels,
    )


def _sizes(files: set[Path], faults: list[str]) -> dict[Path, int]:
    sizes = {}
    for file in sorted(files):
        try:
            inside = sorted(file.iterdir()) if file.is_dir() else [file]
            sizes[file] = sum(entry.stat().st_size for entry in inside)
        except OSError:
            faults.append(f"{file} does not exist")
    return sizes


def _check_stack(rows: list[_Row], faults: list[str]) -> None:
    first = rows[0]
    for name in ("patient", "site", "family", "pixel_size_um", "max_value"):
        values = sorted({str(getattr(row, name)) for row in rows})
        if len(values) > 1:
            faults.append(f"stack {first.stack} must have one {name}, got {', '.join(values)}")
    seen: dict[object, str] = {}
    for row in rows:
        for key, what in (
            ((row.file, row.page), f"page {row.page} of {row.file.name}"),
            (row.z_um, f"z {row.z_um} um"),
        ):
            if key in seen:
                faults.append(f"{row.where} repeats {what} of stack {row.stack}, first in {seen[key]}")
            seen.setdefault(key, row.where)


def _stack(rows: list[_Row], boundaries_um: tuple[float, float] | None) -> LabelledStack:
    rows = sorted(rows, key=lambda row: row.z_um)
    complete = [name for name in OPTIONAL_LABELS if all(name in row.readings for row in rows)]
    return LabelledStack(
        stack=rows[0].stack,
        patient=rows[0].patient,
        site=rows[0].site,
        family=rows[0].family,
        files=tuple(row.file for row in rows),
        pages=tuple(row.page for row in rows),
        z_um=np.array([row.z_um for row in rows], np.float64),
        pixel_size_um=rows[0].pixel_size_um,
        labels=np.array([row.label for row in rows], np.int64),
        readings={name: np.array([row.readings[name] for row in rows], np.int64) for name in complete},
        boundaries_um=boundaries_um,
        max_value=rows[0].max_value,
    )
