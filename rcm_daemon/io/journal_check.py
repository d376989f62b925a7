"""Reads the whole journal beside a daemon that serves, so that damage is found, however large the file is."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from rcm_daemon.errors import RcmError
from rcm_daemon.io.journal import Journal, is_damage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

log = logging.getLogger("rcm_daemon")

CHECK_EVERY_S = 86_400.0
NICENESS = 19


class JournalCheck:
    """Checks the file's structure after each start and once a day, in a thread that gives way to all others.

    Parameters
    ----------
    path
        Of the journal, which another connection may be writing.
    on_damage
        Called from the thread with what is damaged, at most once.
    """

    def __init__(self, path: Path, on_damage: Callable[[str], None]) -> None:
        self._path = path
        self._on_damage = on_damage
        self._closing = threading.Event()
        self._journal: Journal | None = None
        self._thread = threading.Thread(target=self._run, name="journal check", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Break off what is being read."""
        self._closing.set()
        while self._thread.is_alive():
            if (journal := self._journal) is not None:
                with suppress(sqlite3.ProgrammingError):  # just closed
                    journal.interrupt()
            self._thread.join(0.01)

    def _run(self) -> None:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while not self._closing.is_set():
            if damage := self._check():
                self._on_damage(damage)
                return
            self._closing.wait(CHECK_EVERY_S)

    def _check(self) -> str:
        """Return what is damaged, empty if nothing is."""
        try:
            with closing(Journal(self._path, read_only=True)) as self._journal:
                self._journal.check_structure()
        except (sqlite3.DatabaseError, RcmError) as error:
            if isinstance(error, sqlite3.DatabaseError) and is_damage(error, reading=True):
                return str(error)
            if not self._closing.is_set():
                log.error("the journal could not be checked (%s)", error)
        finally:
            self._journal = None
        return ""
