"""The labels CSV of a data set that is to be imported: one row a slice, in the reader's own words."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from rcm_daemon.core.records import STRATA
from trainer.data.tables import listed, need_columns, read_csv

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

REQUIRED_COLUMNS = ("stack", "patient", "slice", "label")
READERS = ("reader_1", "reader_2")


@dataclass(frozen=True)
class LabelledSlice:
    """One row.

    Attributes
    ----------
    row
        Its number in the file, the header being row 1.
    patient, site
        As written; site is empty where the file has none.
    slice
        0-based number of the slice in its stack.
    z_um
        Depth in um where the file gives one, otherwise None.
    strata
        Stratum by column name: label, and reader_1 and reader_2 where given.
    """

    row: int
    patient: str
    site: str
    slice: int
    z_um: float | None
    strata: dict[str, str]


def parse_word_map(pairs: Sequence[str], faults: list[str]) -> dict[str, str]:
    """Read `word=stratum` pairs into a look-up by `plain` word; faults are added to the list.

    The strata's own names stand for themselves unless a pair says otherwise.
    """
    words = {name: name for name in STRATA}
    given: dict[str, str] = {}
    for pair in pairs:
        word, equals, stratum = (part.strip() for part in pair.rpartition("="))
        if not (word and equals and plain(stratum) in STRATA):
            faults.append(f'--map must be "word=stratum" with a stratum of {", ".join(STRATA)}, got "{pair}"')
        elif given.setdefault(plain(word), plain(stratum)) != plain(stratum):
            faults.append(f'--map must give a word one stratum, got two for "{word}"')
    return words | given


def plain(word: str) -> str:
    """Give the form in which label words are compared: lower case, single spaces."""
    return " ".join(word.casefold().split())


def read_labels(path: Path, words: dict[str, str], faults: list[str]) -> dict[str, list[LabelledSlice]]:
    """Read a labels CSV.

    Parameters
    ----------
    path
        The file.
    words
        Stratum by `plain` word, see `parse_word_map`.
    faults
        Where the faults of its rows are added.

    Returns
    -------
    dict
        Rows by stack (its path as written, but for `./` and doubled slashes), in the file's order.

    Raises
    ------
    DataSetError
        If the file cannot be read, or lacks a column.
    """
    table = read_csv(path, "labels must be a CSV in UTF-8")
    rule = f"a labels CSV needs the columns {', '.join(REQUIRED_COLUMNS)}"
    need_columns(table, REQUIRED_COLUMNS, path, rule)
    stacks: dict[str, list[LabelledSlice]] = defaultdict(list)
    unknown: Counter[tuple[str, str]] = Counter()
    faulty: list[str] = []
    for number, cells in enumerate(table.rows, start=table.first_row):
        stack = cells["stack"].strip()
        stack_path = PurePosixPath(stack)
        if not stack or stack_path.is_absolute() or ".." in stack_path.parts:
            faulty.append(f"row {number}: stack must be a path below the imported folder, got {stack!r}")
            continue
        row = _parse_row(number, cells, words, unknown, faulty)
        if row is not None:
            stacks[str(stack_path)].append(row)
    if faulty:
        faults.append(listed(faulty))
    for column in ("label", *READERS):
        found = [
            f"{word!r} ({n} row{'s' * (n > 1)})" for (name, word), n in unknown.items() if name == column
        ]
        if found:
            faults.append(
                f"{column} must be one of {', '.join(words)} (give others with --map), got "
                f"{listed(found, between=', ')}"
            )
    if not stacks and not faults:
        faults.append(f"{path} has no rows")
    return stacks


def _parse_row(
    number: int,
    cells: dict[str, str],
    words: dict[str, str],
    unknown: Counter[tuple[str, str]],
    faults: list[str],
) -> LabelledSlice | None:
    n_faults = len(faults)
    index, z_um = _number(cells["slice"]), None
    if index is None or index < 0 or index != int(index):
        faults.append(f"row {number}: slice must be a whole number from 0, got {cells['slice']!r}")
    if (cells.get("z_um") or "").strip():
        z_um = _number(cells["z_um"])
        if z_um is None:
            faults.append(f"row {number}: z_um must be a depth or empty, got {cells['z_um']!r}")
    strata = {}
    for column in ("label", *READERS):
        word = (cells.get(column) or "").strip()
        if plain(word) in words:
            strata[column] = words[plain(word)]
        elif word or column == "label":
            unknown[column, word] += 1
    if index is None or len(faults) > n_faults:
        return None
    patient, site = ((cells.get(name) or "").strip() for name in ("patient", "site"))
    return LabelledSlice(number, patient, site, int(index), z_um, strata)


def _number(cell: str | None) -> float | None:
    try:
        value = float(cell or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
