"""Rows of a CSV or a Parquet file, every cell as text."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rcm_daemon.errors import DataSetError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PARQUET_SUFFIX = ".parquet"
N_SHOWN = 5


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
    if path.suffix.lower() != PARQUET_SUFFIX:
        return read_csv(path, what)
    try:
        return _read_parquet(path)
    except (OSError, ValueError) as error:
        raise DataSetError(f"{what}, {path} cannot be read: {_reason(error)}") from error


def read_csv(path: Path, what: str) -> Table:
    """Read a CSV in UTF-8, parameters and errors as those of `read_table`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataSetError(f"{what}, {path} cannot be read: {_reason(error)}") from error
    reader = csv.DictReader(text.splitlines(), restval="")
    return Table(text.encode(), tuple(reader.fieldnames or ()), list(reader), 2)


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "it is not in UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)


def need_columns(table: Table, needed: Sequence[str], path: Path, rule: str) -> None:
    """Refuse a table that lacks columns.

    Parameters
    ----------
    table, path
        The table and its file.
    needed
        Names of columns.
    rule
        What needs which columns, for the error.

    Raises
    ------
    DataSetError
        Naming those that are missing and those that are there.
    """
    missing = [name for name in needed if name not in table.columns]
    if missing:
        how = "" if path.suffix.lower() == PARQUET_SUFFIX else ", as commas separate them"
        found = listed(table.columns, between=", ", n_shown=len(needed) + N_SHOWN) or "none"
        raise DataSetError(f"{rule}, {path} lacks {', '.join(missing)}: its columns{how}: {found}")


def listed(items: Sequence[str], between: str = "; ", n_shown: int = N_SHOWN) -> str:
    """Join the first few of what may be very many, and say how many more there are."""
    more = f" and {len(items) - n_shown} more" if len(items) > n_shown else ""
    return between.join(items[:n_shown]) + more


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
