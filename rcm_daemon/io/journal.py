"""The journal: accounts and embeddings in SQLite, every row with a checksum.

Written ahead (WAL) with `synchronous=FULL`: a commit that has returned is on disk. Torn pages of an
unfinished commit are SQLite's business; what rots later is found by the checksums and reported, and the
rest is kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
import struct
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from rcm_daemon.core.account import (
    DroppedSliceRow,
    InstrumentRow,
    RejectionRow,
    ResultRow,
    Row,
    SliceRow,
    StackRow,
    latest,
)
from rcm_daemon.core.stack import EmbeddedSlice, Received
from rcm_daemon.errors import ConfigurationError, RcmError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

log = logging.getLogger("rcm_daemon")

JOURNAL_FILE = "journal.db"
FORMAT = 1
TABLES = {
    "instrument": ("name", "time_s", "account"),
    "stack": ("number", "time_s", "account"),
    "result": ("number", "time_s", "message"),
    "slice": ("number", "idx", "z_um", "fingerprint", "weight", "flags", "embedding"),
    "rejection": ("number", "ordinal", "idx", "reason"),
}
"""Columns; a checksum over them comes last. Two of them are the key of `slice` and `rejection`, else one."""
_KEYS = {"slice": "number, idx", "rejection": "number, ordinal"}
Value = int | float | str | bytes
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_UNREADABLE = (*_DAMAGED, sqlite3.SQLITE_IOERR)


def is_damage(error: sqlite3.Error, *, reading: bool) -> bool:
    """Whether an error says that the file is damaged; a write that fails for other reasons is tried again."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (_UNREADABLE if reading else _DAMAGED)


def checksum(table: str, values: Sequence[Value]) -> bytes:
    """Return eight bytes over a row's values, their types and their table."""
    digest = hashlib.blake2b(table.encode(), digest_size=8)
    for value in values:
        if isinstance(value, float):
            data = struct.pack("<d", value)
        else:
            data = value if isinstance(value, bytes) else str(value).encode()
        digest.update(f"{type(value).__name__}{len(data)}:".encode())
        digest.update(data)
    return digest.digest()


class Journal:
    """One SQLite file; used by one thread at a time.

    Attributes
    ----------
    n_damaged
        Rows found whose checksum does not hold.

    Raises
    ------
    ConfigurationError
        The file cannot be opened or is of another format.
    RcmError
        There is no room for it.
    sqlite3.DatabaseError
        The file is there but its structure is damaged (see `journal_salvage`).
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self.n_damaged = 0
        self._read_only = read_only
        try:
            where = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
            self._db = sqlite3.connect(where, uri=True, isolation_level=None, check_same_thread=False)
        except sqlite3.OperationalError as error:
            raise ConfigurationError([f"the journal {path} cannot be opened ({error})"]) from error
        try:
            if not read_only:
                self._prepare()
            (found,) = self._db.execute("PRAGMA user_version").fetchone()
        except sqlite3.OperationalError as error:
            self._db.close()
            detail = f"the journal {path} cannot be written ({error})"
            if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                raise RcmError(detail) from error  # room may come
            raise ConfigurationError([detail]) from error
        except sqlite3.DatabaseError:
            self._db.close()
            raise
        if found != FORMAT:
            self._db.close()
            detail = (
                f"the journal {path} must have format {FORMAT}, got {found}; move it away to begin another"
            )
            raise ConfigurationError([detail])

    def _prepare(self) -> None:
        self._db.execute("PRAGMA auto_vacuum=INCREMENTAL")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        if self._db.execute("PRAGMA user_version").fetchone() != (0,):
            return
        self._db.execute("BEGIN IMMEDIATE")
        for table, columns in TABLES.items():
            key = _KEYS.get(table)
            first = f"{columns[0]} PRIMARY KEY" if key is None else columns[0]
            if columns[0] == "number" and key is None:
                first = "number INTEGER PRIMARY KEY"
            rest = [*columns[1:], "checksum", *([f"PRIMARY KEY ({key})"] if key else [])]
            self._db.execute(f"CREATE TABLE {table} ({', '.join([first, *rest])})")
        self._db.execute(f"PRAGMA user_version={FORMAT}")
        self._db.execute("COMMIT")

    def check_structure(self) -> None:
        """Read every page.

        Raises
        ------
        sqlite3.DatabaseError
            One is damaged.
        """
        (verdict,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            error = sqlite3.DatabaseError(" ".join(verdict.split()))
            error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise error

    def interrupt(self) -> None:
        """Have what is being read by another thread fail with an OperationalError."""
        self._db.interrupt()

    def close(self) -> None:
        """Close the file; what was committed stays."""
        self._db.close()

    def write(self, rows: Iterable[Row]) -> None:
        """Commit rows, all or none, and return when they are on disk.

        Raises
        ------
        sqlite3.Error
            They are not; the same rows can be written again.
        """
        now_s = int(time.time())
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for row in latest(list(rows)):
                self._write_row(row, now_s)
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _write_row(self, row: Row, now_s: int) -> None:
        match row:
            case InstrumentRow():
                self.put("instrument", (row.name, now_s, _json(row.to_fields())))
            case StackRow():
                self.put("stack", (row.number, now_s, _json(row.to_fields())))
            case ResultRow():
                self.put("result", (row.number, now_s, row.message))
            case SliceRow():
                new = row.embedded
                embedding = np.ascontiguousarray(new.embedding, "<f4").tobytes()
                received = (float(new.z_um), row.received.fingerprint)
                flags = ",".join(new.flags)
                self.put("slice", (row.number, new.index, *received, float(new.weight), flags, embedding))
                # It may have been abandoned before; a result stays until there is more to be said.
                self._db.execute("DELETE FROM result WHERE number=?", (row.number,))
            case DroppedSliceRow():
                self._db.execute("DELETE FROM slice WHERE number=? AND idx=?", (row.number, row.index))
            case RejectionRow():
                self.put("rejection", (row.number, row.ordinal, row.index, row.reason))

    def put(self, table: str, values: Sequence[Value]) -> None:
        """Write one row with its checksum."""
        marks = ", ".join("?" * (len(values) + 1))
        self._db.execute(
            f"INSERT OR REPLACE INTO {table} VALUES ({marks})",  # noqa: S608  # a name of TABLES
            (*values, checksum(table, values)),
        )

    def put_all(self, table: str, rows: Iterable[Sequence[Value]]) -> None:
        """Write rows of one table, all or none."""
        self._db.execute("BEGIN IMMEDIATE")
        for values in rows:
            self.put(table, values)
        self._db.execute("COMMIT")

    def rows(self, table: str, number: int | None = None) -> list[tuple[Value, ...]]:
        """Return the good rows of a table, or those of one acquisition, without their checksums.

        Damaged ones are reported and, unless the journal is only read, forgotten.
        """
        where, given = ("", ()) if number is None else (" WHERE number=?", (number,))
        good, damaged = [], []
        query = f"SELECT rowid, * FROM {table}{where} ORDER BY rowid"  # noqa: S608  # a name of TABLES
        for rowid, *values, found in self._db.execute(query, given):
            if found == checksum(table, values):
                good.append(tuple(values))
            else:
                damaged.append((rowid,))
        if damaged:
            self.n_damaged += len(damaged)
            log.error("%d damaged row(s) of the journal's table %s are left out", len(damaged), table)
            if not self._read_only:
                self._db.executemany(f"DELETE FROM {table} WHERE rowid=?", damaged)  # noqa: S608
        return good

    def instruments(self) -> list[InstrumentRow]:
        """Return all instruments, those that have not been heard for longest first."""
        rows = sorted(self.rows("instrument"), key=lambda row: int(row[1]))
        return [InstrumentRow.from_fields(str(name), json.loads(str(text))) for name, _, text in rows]

    def stacks(self) -> dict[int, dict[str, Any]]:
        """Return the accounts of all acquisitions by number, oldest first."""
        return {int(row[0]): json.loads(str(row[2])) for row in self.rows("stack")}

    def results(self) -> dict[int, str]:
        """Return the final messages of all acquisitions that have ended, by number."""
        return {int(row[0]): str(row[2]) for row in self.rows("result")}

    def newest_results(self, limit: int) -> list[str]:
        """Return the final messages of the acquisitions that were opened last, oldest first."""
        query = "SELECT number FROM result ORDER BY number DESC LIMIT ?"
        numbers = [number for (number,) in self._db.execute(query, (limit,))]
        return [str(row[2]) for number in reversed(numbers) for row in self.rows("result", number)]

    def next_number(self) -> int:
        """Return a number that no acquisition has had."""
        union = "SELECT max(number) AS n FROM stack UNION ALL SELECT max(number) FROM slice"
        (highest,) = self._db.execute(f"SELECT max(n) FROM ({union})").fetchone()  # noqa: S608
        return (highest or 0) + 1

    def has_result(self) -> set[int]:
        """Return the numbers of all acquisitions whose final message was written."""
        return {number for (number,) in self._db.execute("SELECT number FROM result")}

    def slices(self, number: int) -> tuple[dict[int, Received], list[EmbeddedSlice], int]:
        """Return an acquisition's slices, as received and as embedded, and how many rows were damaged."""
        before = self.n_damaged
        received, embedded = {}, []
        for _, index, z_um, fingerprint, weight, flags, data in self.rows("slice", number):
            assert isinstance(fingerprint, bytes) and isinstance(data, bytes)  # noqa: S101
            received[int(index)] = Received(float(z_um), fingerprint)
            words = tuple(str(flags).split(",")) if flags else ()
            embedding = np.frombuffer(data, "<f4").astype(np.float32, copy=False)
            embedded.append(EmbeddedSlice(int(index), float(z_um), embedding, float(weight), words))
        return received, embedded, self.n_damaged - before

    def indices(self, number: int) -> set[int]:
        """Return which slices of an acquisition are there, without looking at them."""
        return {index for (index,) in self._db.execute("SELECT idx FROM slice WHERE number=?", (number,))}

    def n_slices(self, number: int) -> int:
        """Return how many slices of an acquisition are there, without looking at them."""
        query = "SELECT count(*) FROM slice WHERE number=?"
        (n,) = self._db.execute(query, (number,)).fetchone()
        return int(n)

    def rejections(self, number: int) -> list[RejectionRow]:
        """Return an acquisition's listed refusals, in order."""
        found = sorted(self.rows("rejection", number), key=lambda row: int(row[1]))
        return [RejectionRow(number, int(row[1]), int(row[2]), str(row[3])) for row in found]

    def prune(self, older_than_s: int, max_bytes: int) -> int:
        """Forget acquisitions that ended before a time, then the oldest until the file is small enough.

        Returns how many were forgotten. Open ones, and such whose result is not written, are never forgotten.
        """
        old = "SELECT number FROM result WHERE time_s < ? ORDER BY number LIMIT 100"
        n_forgotten = self._forget([n for (n,) in self._db.execute(old, (older_than_s,))])
        if self._n_bytes() > max_bytes:
            oldest = "SELECT number FROM result ORDER BY number LIMIT 20"
            n_forgotten += self._forget([n for (n,) in self._db.execute(oldest)])
        self._db.execute("DELETE FROM instrument WHERE time_s < ?", (older_than_s,))
        if n_forgotten:
            # One step frees one page; execute() takes only the first step of what gives no rows.
            self._db.executescript("PRAGMA incremental_vacuum")
        return n_forgotten

    def _forget(self, numbers: list[int]) -> int:
        if numbers:
            self._db.execute("BEGIN IMMEDIATE")
            for table in ("slice", "rejection", "result", "stack"):
                self._db.executemany(f"DELETE FROM {table} WHERE number=?", [(n,) for n in numbers])  # noqa: S608
            self._db.execute("COMMIT")
        return len(numbers)

    def _n_bytes(self) -> int:
        (n_pages,) = self._db.execute("PRAGMA page_count").fetchone()
        (n_free,) = self._db.execute("PRAGMA freelist_count").fetchone()
        (n_bytes_a_page,) = self._db.execute("PRAGMA page_size").fetchone()
        return int((n_pages - n_free) * n_bytes_a_page)


def _json(fields: dict[str, Any]) -> str:
    return json.dumps(fields, separators=(",", ":"))
