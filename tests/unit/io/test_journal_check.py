"""A journal too large to be checked before it is used: damage is found all the same, and salvaged once."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest
from journal_rows import assert_same_slices, rows, slice_row

from rcm_daemon.errors import JournalDamagedError, RcmError
from rcm_daemon.io import journal_salvage
from rcm_daemon.io.journal import Journal
from rcm_daemon.io.journal_check import JournalCheck
from rcm_daemon.io.journal_salvage import damage_noted, open_journal
from rcm_daemon.io.journal_writer import JournalWriter

pytestmark = pytest.mark.hazard("H27")
N_STACKS = 12


@pytest.fixture(autouse=True)
def _all_are_large(monkeypatch):
    monkeypatch.setattr(journal_salvage, "CHECKED_FIRST_BYTES", 0)


@pytest.fixture
def folder(tmp_path):
    journal = Journal(tmp_path / "journal.db")
    for number in range(1, N_STACKS + 1):
        journal.write(rows(number, n_slices=20))
    journal.close()
    return tmp_path


def root_page(path, table):
    with sqlite3.connect(path) as database:
        (page,) = database.execute("SELECT rootpage FROM sqlite_schema WHERE name=?", (table,)).fetchone()
    database.close()
    return page


def damage(folder, page):
    path = folder / "journal.db"
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(bytes([7]) * 100)


def slices_page(folder):
    """A page of slices in the middle of the file."""
    data = slice_row(6, 10).embedded.embedding.tobytes()
    return (folder / "journal.db").read_bytes().index(data) // 4096 + 1


def kept(journal):
    return [len(assert_same_slices(journal, number, range(20))) for number in range(1, N_STACKS + 1)]


class Desk:
    """A writer with its check, and the sentence it ends with."""

    def __init__(self, folder):
        self._woken = threading.Event()
        self.writer = JournalWriter(open_journal(folder), self._woken.set, 90.0, 10**9)
        self.writer.start()

    def until_damaged(self):
        while not self.writer.damage:
            assert self._woken.wait(60)
            self._woken.clear()


def test_damage_is_found_while_serving_and_salvaged_at_the_next_start(folder):
    damage(folder, slices_page(folder))
    desk = Desk(folder)
    desk.until_damaged()
    assert "the next start puts it aside and keeps what is readable" in desk.writer.damage
    desk.writer.close()
    journal = open_journal(folder)
    assert 20 * (N_STACKS - 2) < sum(kept(journal)) < 20 * N_STACKS
    assert journal.n_damaged > 0
    journal.close()
    assert (folder / "journal.damaged-1.db").exists()
    again = Desk(folder)  # which is sound, and is looked at again
    again.writer.close()
    assert again.writer.damage == ""
    assert not (folder / "journal.damaged-2.db").exists()


def test_a_write_that_meets_damage_is_found_at_once(folder, monkeypatch):
    monkeypatch.setattr(JournalCheck, "start", lambda self: None)
    damage(folder, root_page(folder / "journal.db", "rejection"))
    desk = Desk(folder)
    desk.writer.submit(rows(50))
    desk.until_damaged()
    assert not desk.writer.take_written()
    desk.writer.close()
    journal = open_journal(folder)
    assert kept(journal) == [20] * N_STACKS
    journal.write(rows(50))
    journal.close()


def test_what_is_met_while_reading_at_the_start_is_salvaged_at_the_next(folder):
    damage(folder, root_page(folder / "journal.db", "stack"))
    journal = open_journal(folder)
    with pytest.raises(JournalDamagedError, match="the next start"), damage_noted(folder):
        journal.stacks()
    journal.close()
    journal = open_journal(folder)
    assert kept(journal) == [20] * N_STACKS
    assert journal.n_damaged > 0
    journal.close()


def test_a_sound_journal_is_checked_and_left_alone(folder):
    checked = threading.Event()

    class Noted(Journal):
        def check_structure(self):
            super().check_structure()
            checked.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rcm_daemon.io.journal_check.Journal", Noted)
        desk = Desk(folder)
        assert checked.wait(60)
        desk.writer.close()
    assert desk.writer.damage == ""


def test_a_check_under_way_holds_up_no_stop(folder, monkeypatch):
    reading = threading.Event()

    def endless(self):
        reading.set()
        self._db.execute("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n) SELECT max(i) FROM n")

    monkeypatch.setattr(Journal, "check_structure", endless)
    desk = Desk(folder)
    assert reading.wait(60)
    desk.writer.close()
    assert desk.writer.damage == ""


def suspected(folder):
    damage(folder, slices_page(folder))
    journal_salvage.suspect_journal(folder, "it is")


def test_a_salvage_that_was_killed_is_done_again(folder, monkeypatch):
    """At any step: while rows are copied, and between the two that put the new file in place."""
    suspected(folder)
    put_all, rename = Journal.put_all, Path.rename
    steps = []

    def killed_at(step):
        steps.append(step)  # of the list that is there now
        if len(steps) == n:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "put_all", lambda *args: (killed_at("rows"), put_all(*args)))
    monkeypatch.setattr(Path, "rename", lambda *args: (killed_at("rename"), rename(*args))[1])
    whole = None
    for n in range(1, 30):
        steps.clear()
        copy = folder / f"copy-{n}"
        copy.mkdir()
        for name in ("journal.db", "journal.suspect"):
            (copy / name).write_bytes((folder / name).read_bytes())
        try:
            open_journal(copy).close()
        except KeyboardInterrupt:
            steps = ["over"] * 100
            journal = open_journal(copy)
            whole = whole or kept(journal)
            assert kept(journal) == whole, n
            assert len(journal.stacks()) == N_STACKS
            journal.close()
        else:
            break
    assert n > 6  # five tables and two names


def test_the_log_of_the_damaged_journal_is_not_taken_for_the_new_ones(folder, monkeypatch):
    """Killed after the first rename, with a write-ahead log that still belongs to the damaged file."""
    writer = Journal(folder / "journal.db")
    writer.write(rows(40, n_slices=20))
    log = (folder / "journal.db-wal").read_bytes()
    assert log
    suspected(folder)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(journal_salvage, "_put_in_place", killed)
        open_journal(folder)
    (folder / "journal.db").rename(folder / "journal.damaged-1.db")
    (folder / "journal.db-wal").write_bytes(log)
    (folder / "journal.suspect").unlink()
    journal = open_journal(folder)
    found = kept(journal)
    journal.check_structure()
    journal.close()
    writer.close()
    assert 20 * (N_STACKS - 2) < sum(found) < 20 * N_STACKS
    assert (folder / "journal.damaged-1.db-wal").read_bytes() == log


def test_a_sector_that_cannot_be_read_is_damage(folder, monkeypatch):
    def unreadable(self):
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_READ
        raise error

    monkeypatch.setattr(Journal, "check_structure", unreadable)
    desk = Desk(folder)
    desk.until_damaged()
    desk.writer.close()


def test_what_is_no_damage_salvages_nothing(folder, caplog):
    def locked(self):
        raise sqlite3.OperationalError("database is locked")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "check_structure", locked)
        desk = Desk(folder)
        while "could not be checked (database is locked)" not in caplog.text:
            pass
        desk.writer.close()
    assert desk.writer.damage == ""
    with pytest.raises(sqlite3.OperationalError), damage_noted(folder):
        raise sqlite3.OperationalError("database is locked")
    assert not (folder / "journal.suspect").exists()


def test_where_there_is_no_room_nothing_is_given_up(folder, monkeypatch):
    suspected(folder)
    before = (folder / "journal.db").read_bytes()

    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "put_all", full)
        with pytest.raises(RcmError, match="cannot be written anew") as caught:
            open_journal(folder)
    assert caught.value.exit_code == 1  # started again, it may succeed
    assert (folder / "journal.db").read_bytes() == before
    journal = open_journal(folder)
    assert sum(kept(journal)) > 20 * (N_STACKS - 2)
    journal.close()
