"""The writer under disks that wait, fill up and refuse: order write, sync, acknowledge."""

from __future__ import annotations

import threading

import pytest
from journal_rows import assert_same_slices, rows, slice_row
from sqlite_faults import SqliteTap, library_path

from rcm_daemon.core.ledger import Ledger
from rcm_daemon.errors import RcmError
from rcm_daemon.io.journal import Journal
from rcm_daemon.io.journal_writer import JournalWriter
from rcm_daemon.recording import Recording

pytestmark = pytest.mark.skipif(library_path() is None, reason="SQLite is built into this Python")


class Desk:
    """A writer on a tapped journal, and what it says."""

    def __init__(self, folder, tap):
        self.tap, self.path = tap, folder / "journal.db"
        self.woken = threading.Semaphore(0)
        self.writer = JournalWriter(Journal(self.path), self.woken.release, 90.0, 10**9)
        self.writer.start()
        tap.events.clear()

    def next_word(self):
        assert self.woken.acquire(timeout=60)

    def until_written(self):
        while not self.writer.take_written():
            self.next_word()


@pytest.fixture
def desk(tmp_path):
    with SqliteTap() as tap:
        desk = Desk(tmp_path, tap)
        yield desk
        tap.write_fails = tap.sync_fails = tap.sync_waits = False
        tap.sync_may_go.set()
        desk.writer.close()


@pytest.mark.hazard("H35")
def test_first_written_then_synced_then_acknowledged(desk):
    desk.tap.sync_waits = True
    desk.writer.submit(rows())
    assert desk.tap.sync_entered.wait(60)
    assert ("write", "db-wal") in desk.tap.events
    assert ("sync", "db-wal") not in desk.tap.events
    assert not desk.writer.take_written()
    assert not desk.writer.is_free
    desk.tap.sync_may_go.set()
    desk.until_written()
    assert desk.tap.events[-1] == ("sync", "db-wal")
    assert desk.writer.is_free


@pytest.mark.hazard("H35")
def test_a_sync_that_fails_acknowledges_nothing_until_one_succeeds(desk, caplog):
    desk.tap.sync_fails = True
    desk.writer.submit(rows())
    desk.next_word()
    assert not desk.writer.take_written()
    assert "cannot be written" in desk.writer.fault
    assert "nothing is acknowledged" in caplog.text
    desk.tap.sync_fails = False
    desk.until_written()
    assert desk.writer.fault == ""
    reader = Journal(desk.path, read_only=True)
    assert assert_same_slices(reader, 1, range(5)) == [0, 1, 2, 3, 4]
    reader.close()


@pytest.mark.hazard("H33")
def test_a_full_disk_acknowledges_nothing_until_there_is_room(desk, caplog):
    desk.writer.submit(rows())
    desk.until_written()
    desk.tap.write_fails = True
    desk.writer.submit([slice_row(1, 5)])
    desk.next_word()
    assert not desk.writer.take_written()
    assert "full" in desk.writer.fault
    desk.tap.write_fails = False
    desk.until_written()
    assert "the journal is written again" in caplog.text
    reader = Journal(desk.path, read_only=True)
    assert assert_same_slices(reader, 1, range(6)) == [0, 1, 2, 3, 4, 5]
    reader.close()


def test_a_disk_that_hangs_is_reported_while_it_does(desk, monkeypatch):
    monkeypatch.setattr("rcm_daemon.io.journal_writer.PATIENCE_S", 0.0)
    assert desk.writer.fault == ""
    desk.tap.sync_waits = True
    desk.writer.submit(rows())
    assert desk.tap.sync_entered.wait(60)
    assert desk.writer.fault.startswith("the disk has not taken the journal's last batch for")
    desk.tap.sync_may_go.set()
    desk.until_written()
    assert desk.writer.fault == ""


def test_a_folder_that_cannot_be_listed_keeps_nothing_from_being_written(desk, monkeypatch, caplog):
    def no_descriptor(path, older_than_s):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("rcm_daemon.io.journal_writer.forget_put_aside", no_descriptor)
    for index in range(2):
        desk.writer.submit(rows(index + 1))
        desk.until_written()
    assert "cannot be made smaller" in caplog.text
    assert desk.writer.death == ""


def test_a_thread_that_ends_is_seen_and_ends_the_daemon(desk, monkeypatch):
    monkeypatch.setattr(Journal, "write", lambda *_: 1 / 0)
    desk.writer.submit(rows())
    desk.next_word()
    assert "the journal's thread has ended (ZeroDivisionError" in desk.writer.death
    recording = Recording(Ledger(), Journal(desk.path, read_only=True), desk.writer)
    with pytest.raises(RcmError, match="the journal's thread has ended"):
        recording.advance()


@pytest.mark.hazard("H33")
def test_a_daemon_can_stop_while_the_disk_is_full(desk):
    desk.tap.write_fails = True
    desk.writer.submit(rows())
    desk.next_word()
    desk.writer.close()
    desk.tap.write_fails = False
    reader = Journal(desk.path)
    assert reader.stacks() == {}
    reader.close()
