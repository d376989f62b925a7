"""Rows of a CSV or a Parquet file, every cell as text."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rcm_daemon.errors import DataSetError

if TYPE_CHECKING:
    from pathlib import Path

PARQUET_SUFFIX = ".parquet"


@dataclass(frozen=True)
class Table:
    """What a file holds.

    Attributes
    ----------
    content
        Bytes a digest is taken of.
    columns
        Names of the columns.
    rows
        Text by column; a null is empty.
    first_row
        Number of the first row, for errors: a CSV's header is its row 1.
    """

    content: bytes
    columns: tuple[str, ...]
    rows: list[dict[str, str]]
    first_row: int


def read_table(path: Path, what: str) -> Table:
    """Read a file, as Parquet where it is called so and as CSV otherwise.

    Parameters
    ----------
    path
        The file.
    what
        What needs it, for the error.

    Raises
    ------
    DataSetError
        If it cannot be read, or is Parquet and pyarrow is not installed.
    """
    try:
        if path.suffix.lower() == PARQUET_SUFFIX:
            return _read_parquet(path)
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataSetError(f"{what}, {path} cannot be read: {error}") from error
    reader = csv.DictReader(text.splitlines())
    return Table(text.encode(), tuple(reader.fieldnames or ()), list(reader), 2)


def _read_parquet(path: Path) -> Table:
    try:
        from pyarrow import BufferReader
        from pyarrow.parquet import read_table as read_arrow
    except ImportError as error:
        raise DataSetError(
            f'Parquet is read with pyarrow, and {path} needs it: pip install "rcm-daemon[parquet]"'
        ) from error
    content = path.read_bytes()
    table = read_arrow(BufferReader(content))
    rows = [
        {name: "" if value is None else str(value) for name, value in row.items()}
        for row in table.to_pylist()
    ]
    return Table(content, tuple(table.column_names), rows, 1)
