"""Opening the journal, whatever state it is in: what cannot be read is reported, the rest is kept."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import suppress
from typing import TYPE_CHECKING

from rcm_daemon.io.journal import JOURNAL_FILE, TABLES, Journal, checksum

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger("rcm_daemon")

MAX_PADDED_BYTES = 1 << 40
MAX_UNREADABLE_ROWS = 100_000
"""So many row numbers in a row may be unreadable before the rest of a table is given up."""


def open_journal(folder: Path) -> Journal:
    """Open the journal of a state folder; of a damaged one, put aside, what is readable goes into a new one.

    Raises
    ------
    ConfigurationError
        The journal cannot be opened or written.
    """
    path = folder / JOURNAL_FILE
    try:
        journal = Journal(path)
        try:
            journal.check_structure()
        except sqlite3.DatabaseError:
            journal.close()
            raise
    except sqlite3.DatabaseError as error:
        aside = _put_aside(path)
        log.error("the journal is damaged (%s); it is kept as %s and what is readable goes on", error, aside)
        return _salvage(aside, path)
    return journal


def _put_aside(path: Path) -> Path:
    """Rename the file and its companions to the first free name."""
    number = 1
    while (aside := path.with_name(f"{path.stem}.damaged-{number}.db")).exists():
        number += 1
    for suffix in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    return aside


def _pad(path: Path) -> None:
    """Make a file that was cut short as long as its header says; SQLite would not read any of it else."""
    with path.open("r+b") as file:
        header = file.read(32)
        page_size = int.from_bytes(header[16:18], "big")
        n_bytes = int.from_bytes(header[28:32], "big") * (65_536 if page_size == 1 else page_size)
        if header.startswith(b"SQLite format 3") and path.stat().st_size < n_bytes <= MAX_PADDED_BYTES:
            file.truncate(n_bytes)


def _salvage(aside: Path, path: Path) -> Journal:
    journal = Journal(path)
    journal.n_damaged += 1
    _pad(aside)
    source = sqlite3.connect(aside)
    try:
        for table, columns in TABLES.items():
            try:
                n_rows = _salvage_table(source, journal, table, columns)
            except sqlite3.Error as error:
                log.error("table %s of the damaged journal cannot be read at all (%s)", table, error)
            else:
                log.warning("table %s of the damaged journal: %d rows kept", table, n_rows)
    finally:
        source.close()
    return journal


def _salvage_table(source: sqlite3.Connection, journal: Journal, table: str, columns: tuple[str, ...]) -> int:
    names = ", ".join(f'"{name}"' for name in (*columns, "checksum"))
    query = f"SELECT rowid, {names} FROM {table} WHERE rowid > ? ORDER BY rowid LIMIT 1"  # noqa: S608
    source.execute(f"SELECT rowid FROM {table} LIMIT 0")  # noqa: S608
    rowid = n_rows = n_unreadable = 0
    while n_unreadable < MAX_UNREADABLE_ROWS:
        try:
            found = source.execute(query, (rowid,)).fetchone()
        except sqlite3.Error:
            rowid += 1
            n_unreadable += 1
            continue
        if found is None:
            break
        rowid, *values, mark = found
        n_unreadable = 0
        if mark == checksum(table, values):
            journal.put(table, values)
            n_rows += 1
        else:
            journal.n_damaged += 1
    return n_rows
