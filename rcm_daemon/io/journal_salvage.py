"""Opening the journal, whatever state it is in: what cannot be read is reported, the rest is kept."""

from __future__ import annotations

import contextlib
import itertools
import logging
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from rcm_daemon.errors import JournalDamagedError, RcmError
from rcm_daemon.io.journal import JOURNAL_FILE, TABLES, Journal, checksum, is_damage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger("rcm_daemon")

SUSPECT_FILE = "journal.suspect"
"""Its presence says that the journal was found damaged while in use, and its text how."""
CHECKED_FIRST_BYTES = 32_000_000
"""A journal up to this size is checked before anything is read of it: tenths of a second at the most."""
MAX_PADDED_BYTES = 1 << 40
MAX_UNREADABLE_ROWS = 100_000
"""So many row numbers in a row may be unreadable before the rest of a table is given up."""
ROWS_A_COMMIT = 10_000


def open_journal(folder: Path, on_progress: Callable[[], None] = lambda: None) -> Journal:
    """Open the journal of a state folder; of a damaged one, put aside, what is readable goes into a new one.

    A large one is only opened here; `journal_check` reads it all once the daemon serves. `on_progress` is
    called now and then while a damaged one is copied, which may take minutes.

    Raises
    ------
    ConfigurationError
        The journal cannot be opened or written.
    RcmError
        There is no room for it, or for what is readable of a damaged one.
    """
    path = folder / JOURNAL_FILE
    fresh, suspect = _fresh(path), folder / SUSPECT_FILE
    if fresh.exists() and not path.exists():  # stopped between the two steps that put it in place
        _put_in_place(path)
    try:
        if suspect.exists():
            raise sqlite3.DatabaseError(suspect.read_text(encoding="utf-8"))
        journal = Journal(path)
        try:
            if path.stat().st_size <= CHECKED_FIRST_BYTES:
                journal.check_structure()
        except sqlite3.DatabaseError:
            journal.close()
            raise
    except sqlite3.DatabaseError as error:
        journal = _salvage(path, str(error), on_progress)
    suspect.unlink(missing_ok=True)
    return journal


def suspect_journal(folder: Path, damage: str) -> str:
    """Have the next start salvage the journal; returns the sentence to end this one with."""
    try:
        (folder / SUSPECT_FILE).write_text(damage, encoding="utf-8")
    except OSError as error:
        log.error("the next start will not know that the journal is damaged (%s)", error)
    return f"the journal is damaged ({damage}): the next start puts it aside and keeps what is readable"


@contextlib.contextmanager
def damage_noted(folder: Path) -> Iterator[None]:
    """Have the next start salvage a journal that turns out damaged while it is read.

    Raises
    ------
    JournalDamagedError
        It has.
    """
    try:
        yield
    except sqlite3.DatabaseError as error:
        if not is_damage(error, reading=True):
            raise
        raise JournalDamagedError(suspect_journal(folder, str(error))) from error


def forget_put_aside(path: Path, older_than_s: int) -> None:
    """Delete damaged journals that were put aside and last written before a time; they hold ids too."""
    for aside in path.parent.glob(f"{path.stem}.damaged-*.db*"):
        with contextlib.suppress(OSError):
            if aside.stat().st_mtime < older_than_s:
                aside.unlink()
                log.info("forgotten, as stacks of its age are: %s", aside.name)


def _fresh(path: Path) -> Path:
    """Return where the new journal is written until it is whole."""
    return path.with_name(f"{path.stem}.salvaged.db")


def _put_in_place(path: Path) -> Path:
    """Rename the damaged file and its companions to the first free name, and the fresh one to theirs.

    Called again it goes on where it was killed: a companion left behind would be taken for the fresh one's.
    """
    names = (path.with_name(f"{path.stem}.damaged-{number}.db") for number in itertools.count(1))
    taken = list(itertools.takewhile(Path.exists, names))
    aside = path.with_name(f"{path.stem}.damaged-{len(taken) + 1}.db") if path.exists() else taken[-1]
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    _fresh(path).rename(path)
    return aside


def _pad(path: Path) -> None:
    """Make a file that was cut short as long as its header says; SQLite would not read any of it else."""
    with path.open("r+b") as file:
        header = file.read(32)
        page_size = int.from_bytes(header[16:18], "big")
        n_bytes = int.from_bytes(header[28:32], "big") * (65_536 if page_size == 1 else page_size)
        if header.startswith(b"SQLite format 3") and path.stat().st_size < n_bytes <= MAX_PADDED_BYTES:
            file.truncate(n_bytes)


def _salvage(path: Path, damage: str, on_progress: Callable[[], None]) -> Journal:
    """Copy what is readable into a new file, whole before it takes the other's place."""
    log.error("the journal is damaged (%s): what is readable of it is kept", damage)
    fresh = _fresh(path)
    for suffix in ("", "-wal", "-shm"):
        fresh.with_name(fresh.name + suffix).unlink(missing_ok=True)
    n_damaged = 1
    with contextlib.closing(Journal(fresh)) as journal:
        _pad(path)
        source = sqlite3.connect(path)
        try:
            for table, columns in TABLES.items():
                n_damaged += _salvage_table(source, journal, table, columns, on_progress)
        except sqlite3.Error as error:
            detail = f"what is readable of the damaged journal {path} cannot be written anew ({error})"
            raise RcmError(detail) from error  # room may come
        finally:
            source.close()
    log.error("the damaged journal is kept as %s", _put_in_place(path))
    journal = Journal(path)
    journal.n_damaged = n_damaged
    return journal


def _salvage_table(
    source: sqlite3.Connection,
    journal: Journal,
    table: str,
    columns: tuple[str, ...],
    on_progress: Callable[[], None],
) -> int:
    """Copy a table row by row; returns how many rows were there and wrong."""
    names = ", ".join(f'"{name}"' for name in (*columns, "checksum"))
    query = f"SELECT rowid, {names} FROM {table} WHERE rowid > ? ORDER BY rowid LIMIT 1"  # noqa: S608
    try:
        source.execute(f"SELECT rowid FROM {table} LIMIT 0")  # noqa: S608
    except sqlite3.Error as error:
        log.error("table %s of the damaged journal cannot be read at all (%s)", table, error)
        return 0
    rowid = n_rows = n_wrong = n_unreadable = 0
    good: list[list[int | float | str | bytes]] = []
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
            good.append(values)
            n_rows += 1
        else:
            n_wrong += 1
        if len(good) >= ROWS_A_COMMIT:
            journal.put_all(table, good)
            good.clear()
            on_progress()
    journal.put_all(table, good)
    log.warning("table %s of the damaged journal: %d rows kept", table, n_rows)
    return n_wrong
