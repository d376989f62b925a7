"""The thread that writes the journal, so that a slow or full disk holds up acknowledgements only."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from rcm_daemon.io.journal import is_damage
from rcm_daemon.io.journal_check import JournalCheck
from rcm_daemon.io.journal_salvage import forget_put_aside, suspect_journal

if TYPE_CHECKING:
    from collections.abc import Callable

    from rcm_daemon.core.account import Row
    from rcm_daemon.io.journal import Journal

log = logging.getLogger("rcm_daemon")

RETRY_S = 1.0
PRUNE_EVERY_S = 60.0
PATIENCE_S = 10.0
"""A disk that has not taken a batch for so long is reported; it may yet."""


class JournalWriter:
    """Writes one batch of rows at a time; a batch that fails is tried again until it is on disk.

    Parameters
    ----------
    journal
        Used by the thread alone from `start` on.
    wake
        Called from the thread when a batch is on disk, or when writing fails or works again.
    keep_days, max_bytes
        What ended before, or makes the file larger, is forgotten, oldest first.

    Attributes
    ----------
    damage
        That the file turned out damaged, and what happens at the next start; empty while it has not.
    death
        Why the thread has ended, after which nothing would ever be written; empty while it has not.
    """

    def __init__(self, journal: Journal, wake: Callable[[], None], keep_days: float, max_bytes: int) -> None:
        self._journal = journal
        self._wake = wake
        self.keep_days = keep_days
        self.max_bytes = max_bytes
        self._fault = self.damage = self.death = ""
        self._check = JournalCheck(journal.path, self._suspect)
        self._batches: SimpleQueue[list[Row] | None] = SimpleQueue()
        self._written = threading.Event()
        self._closing = threading.Event()
        self._is_busy = False
        self._submitted_s = 0.0
        self._next_prune_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    def start(self) -> None:
        """Take the journal over; until then it may be used by others."""
        self._thread.start()
        self._check.start()

    @property
    def fault(self) -> str:
        """Why nothing is written at the moment, as one sentence; empty while it is."""
        waited_s = time.monotonic() - self._submitted_s
        if self._fault or not self._is_busy or self._written.is_set() or waited_s < PATIENCE_S:
            return self._fault
        return f"the disk has not taken the journal's last batch for {waited_s:.0f} s"

    @property
    def is_free(self) -> bool:
        """Whether a batch can be submitted."""
        return not self._is_busy

    def submit(self, rows: list[Row]) -> None:
        """Have a batch written; only one at a time."""
        assert not self._is_busy  # noqa: S101
        self._is_busy, self._submitted_s = True, time.monotonic()
        self._batches.put(rows)

    def take_written(self) -> bool:
        """Whether the batch has come to be on disk since the last call."""
        if not self._written.is_set():
            return False
        self._written.clear()
        self._is_busy = False
        return True

    def close(self) -> None:
        """Stop after the batch in hand; one that cannot be written is given up."""
        self._closing.set()
        self._batches.put(None)
        self._check.close()
        if self._thread.is_alive():
            self._thread.join()
        self._journal.close()

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:
            self.death = f"the journal's thread has ended ({type(error).__name__}: {error})"
            self._wake()

    def _serve(self) -> None:
        while (rows := self._next_batch()) is not None:
            while not self._write(rows):
                if self._closing.wait(RETRY_S):
                    return
            self._written.set()
            self._wake()
            self._prune()

    def _next_batch(self) -> list[Row] | None:
        """Wait for a batch, and forget what is old meanwhile: a daemon that idles keeps no ids for longer."""
        while True:
            try:
                return self._batches.get(timeout=PRUNE_EVERY_S)
            except Empty:
                self._prune()

    def _write(self, rows: list[Row]) -> bool:
        try:
            self._journal.write(rows)
        except sqlite3.Error as error:
            if is_damage(error, reading=False):
                self._suspect(str(error))
            if not self._fault:
                log.error("the journal cannot be written (%s): nothing is acknowledged until it can", error)
                self._fault = f"the journal cannot be written ({error})"
                self._wake()
            return False
        if self._fault:
            log.warning("the journal is written again")
            self._fault = ""
        return True

    def _suspect(self, damage: str) -> None:
        self.damage = suspect_journal(self._journal.path.parent, damage)
        self._wake()

    def _prune(self) -> None:
        if time.monotonic() < self._next_prune_s:
            return
        try:
            oldest_s = int(time.time() - self.keep_days * 86_400)
            forget_put_aside(self._journal.path, oldest_s)
            n_forgotten = self._journal.prune(oldest_s, self.max_bytes)
        except (sqlite3.Error, OSError) as error:
            if isinstance(error, sqlite3.Error) and is_damage(error, reading=False):
                self._suspect(str(error))
            log.error("the journal cannot be made smaller (%s)", error)
            n_forgotten = 0
        # Where much is to be forgotten, go on with the next batch.
        self._next_prune_s = time.monotonic() + (PRUNE_EVERY_S if not n_forgotten else 0.0)
