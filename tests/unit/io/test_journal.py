"""The journal's file: what goes in comes out, whatever is done to it in between."""

from __future__ import annotations

import os
import shutil
import threading

import numpy as np
import pytest
from journal_rows import assert_same_slices, rows, slice_row, stack

from rcm_daemon.core.account import DroppedSliceRow, InstrumentRow, ResultRow, StackRow, restore_stack
from rcm_daemon.core.instrument import Instrument
from rcm_daemon.core.records import StackEnd, StackStart
from rcm_daemon.core.rejection import Origin, Rejection, Rule
from rcm_daemon.errors import ConfigurationError
from rcm_daemon.io import journal_writer
from rcm_daemon.io.journal import Journal
from rcm_daemon.io.journal_salvage import forget_put_aside, open_journal
from rcm_daemon.io.journal_writer import JournalWriter


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / "journal.db")
    yield journal
    journal.close()


def reopen(journal):
    journal.close()
    return Journal(journal.path)


def test_slices_and_refusals_come_back_to_the_last_bit(journal):
    journal.write(rows())
    again = reopen(journal)
    assert assert_same_slices(again, 1, range(5)) == [0, 1, 2, 3, 4]
    assert [(r.ordinal, r.index, r.reason) for r in again.rejections(1)] == [(0, 7, "R114 crc_mismatch: no")]
    assert again.next_number() == 2
    again.close()


def test_a_stack_comes_back_as_it_was(journal):
    acquisition = stack(4, "stäck µ", "m2")
    header = {"instrument": "m2", "run_id": "run", "stack_id": "stäck µ"}
    acquisition.start = StackStart(
        **header, msg_number=0, n_slices=3, shape=(24, 32), dtype="uint8", pixel_size_um=0.5, z_start_um=-1.0,
        z_step_um=3.0,
    )  # fmt: skip
    acquisition.end = StackEnd(**header, msg_number=9, n_slices=3, reason="completed")
    acquisition.ended = "incomplete"
    acquisition.note_conflict(2)
    acquisition.note_rejection(Rejection(Rule.NOT_EMBEDDED, "no", Origin("m2", index=1)))
    acquisition.revision = 17
    journal.write([StackRow.of(acquisition)])
    again = reopen(journal)
    fields = again.stacks()[4]
    restored = restore_stack(4, fields, {}, [], now_s=5.0)
    again.close()
    names = "instrument stack_id acquisition number start end ended shape dtype bundle_digest n_conflicts"
    for name in [*names.split(), "conflict_index", "n_rejected", "revision", "first_run_id"]:
        assert getattr(restored, name) == getattr(acquisition, name), name
    assert restored.touched_s == 5.0


def test_an_instrument_comes_back_with_its_runs_and_holes(journal):
    known = Instrument("first")
    for number in (0, 3, 4, 9):
        known.numbering.observe(number)
    known.begin_run("second")
    known.numbering.observe(2)
    known.note_early(Rejection(Rule.CRC_MISMATCH, "no", Origin("m1", "second", 2, "slice", "s", 4)))
    row = InstrumentRow.of("m1", known)
    journal.write([row])
    again = reopen(journal)
    (found,) = again.instruments()
    assert found.to_fields() == row.to_fields()
    restored = found.restore()
    again.close()
    assert restored.older_runs == {"first": 6}
    assert (restored.numbering.n_lost, restored.numbering.holes) == (2, [range(2)])
    assert restored.numbering.observe(1) == "late"
    assert restored.early_rejections[0].origin.index == 4


def test_later_rows_replace_earlier_ones_and_dropped_slices_go(journal):
    journal.write(rows())
    journal.write([DroppedSliceRow(1, 3), slice_row(1, 2)])
    journal.write([slice_row(1, 4), DroppedSliceRow(1, 4)])
    assert assert_same_slices(journal, 1, range(5)) == [0, 1, 2]


def test_a_reopened_stack_has_a_result_until_there_is_another_slice(journal):
    acquisition = stack()
    acquisition.ended = "abandoned"
    journal.write([StackRow.of(acquisition), ResultRow(1, "{}")])
    acquisition.ended = "open"
    journal.write([StackRow.of(acquisition)])
    assert journal.has_result() == {1}
    journal.write([slice_row(1, 0)])
    assert journal.has_result() == set()
    acquisition.ended = "complete"
    journal.write([slice_row(1, 1), StackRow.of(acquisition), ResultRow(1, "{}")])
    assert journal.has_result() == {1}


@pytest.mark.hazard("H26")
@pytest.mark.hazard("H27")
def test_a_torn_write_ahead_log_keeps_every_commit_before_the_tear(journal, tmp_path):
    """The files of a crashed process, the log cut anywhere: a prefix of the commits is there, each whole."""
    for index in range(12):
        journal.write([slice_row(1, index), slice_row(2, index)])
    log = tmp_path / "journal.db-wal"
    size = log.stat().st_size
    seen = set()
    for cut in np.linspace(0, size, 40, dtype=int):
        folder = tmp_path / f"cut-{cut}"
        folder.mkdir()
        for name in ("journal.db", "journal.db-wal"):
            shutil.copy(tmp_path / name, folder / name)
        with (folder / "journal.db-wal").open("r+b") as file:
            file.truncate(cut)
        torn = open_journal(folder)
        indices = assert_same_slices(torn, 1, range(12))
        assert indices == assert_same_slices(torn, 2, range(12)) == list(range(len(indices)))
        assert torn.n_damaged == 0
        torn.close()
        seen.add(len(indices))
    assert {0, 12} <= seen
    assert len(seen) > 5


@pytest.mark.hazard("H27")
@pytest.mark.parametrize("seed", range(60))
def test_a_flipped_bit_is_reported_and_what_is_kept_is_right(tmp_path, seed):
    folder = tmp_path / "state"
    folder.mkdir()
    journal = Journal(folder / "journal.db")
    for number in range(1, 6):
        journal.write(rows(number, n_slices=12))
    journal.close()
    data = bytearray((folder / "journal.db").read_bytes())
    rng = np.random.default_rng(seed)
    at = int(rng.integers(100, len(data)))
    data[at] ^= 1 << int(rng.integers(8))
    (folder / "journal.db").write_bytes(data)
    journal = open_journal(folder)
    n_slices = sum(len(assert_same_slices(journal, number, range(12))) for number in range(1, 6))
    n_stacks = len(journal.stacks())
    n_refusals = sum(len(journal.rejections(number)) for number in range(1, 6))
    is_whole = (n_slices, n_stacks, n_refusals) == (60, 5, 5)
    assert is_whole or journal.n_damaged > 0
    journal.close()
    again = open_journal(folder)
    assert len(again.stacks()) == n_stacks
    assert sum(len(again.slices(number)[0]) for number in range(1, 6)) == n_slices
    assert again.n_damaged == 0
    again.close()


@pytest.mark.hazard("H27")
def test_damage_to_one_row_costs_that_row_alone(journal, caplog):
    journal.write(rows(n_slices=9))
    journal._db.execute("UPDATE slice SET embedding=zeroblob(256) WHERE idx=4")
    again = reopen(journal)
    assert assert_same_slices(again, 1, range(9)) == [0, 1, 2, 3, 5, 6, 7, 8]
    assert again.n_damaged == 1
    assert "damaged row" in caplog.text
    again.close()


@pytest.mark.hazard("H27")
def test_a_file_cut_short_is_put_aside_and_the_rest_goes_on(tmp_path, caplog):
    folder = tmp_path
    journal = Journal(folder / "journal.db")
    for number in range(1, 9):
        journal.write(rows(number, n_slices=20))
    journal.close()
    path = folder / "journal.db"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    journal = open_journal(folder)
    kept = [assert_same_slices(journal, number, range(20)) for number in range(1, 9)]
    assert 0 < sum(map(len, kept)) < 160
    assert journal.n_damaged > 0
    assert (folder / "journal.damaged-1.db").exists()
    assert "the journal is damaged" in caplog.text
    journal.write(rows(20))
    journal.close()


@pytest.mark.hazard("H27")
def test_what_is_no_database_is_put_aside(tmp_path):
    (tmp_path / "journal.db").write_bytes(b"not a database, but rather long text" * 300)
    journal = open_journal(tmp_path)
    assert journal.stacks() == {}
    assert journal.n_damaged == 1
    journal.close()


@pytest.mark.hazard("H34")
def test_a_journal_that_cannot_be_opened_is_a_fault_of_the_configuration(tmp_path):
    (tmp_path / "journal.db").mkdir()
    with pytest.raises(ConfigurationError, match="cannot be opened"):
        open_journal(tmp_path)


def test_another_format_is_refused(journal):
    journal._db.execute("PRAGMA user_version=99")
    journal.close()
    with pytest.raises(ConfigurationError, match="must have format 1, got 99"):
        open_journal(journal.path.parent)


def test_old_stacks_are_forgotten_open_ones_never(journal):
    for number in range(1, 60):
        journal.write(rows(number))
        if number != 30:
            journal.write([ResultRow(number, "{}")])
    journal._db.execute("UPDATE result SET time_s = 5 WHERE number < 40")
    while journal.prune(older_than_s=10, max_bytes=10**9):
        pass
    assert sorted(journal.stacks()) == [30, *range(40, 60)]
    assert assert_same_slices(journal, 30, range(5)) == [0, 1, 2, 3, 4]
    assert journal.slices(10)[0] == {}


def test_a_large_journal_becomes_small_again(journal):
    for number in range(1, 120):
        journal.write([*rows(number, n_slices=40), ResultRow(number, "x" * 5_000)])
    journal._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = journal.path.stat().st_size
    while journal.prune(older_than_s=0, max_bytes=before // 3):
        pass
    journal._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert journal.path.stat().st_size < before / 2
    assert 119 in journal.stacks()
    assert 1 not in journal.stacks()


def test_a_reader_beside_the_writer_sees_what_is_committed(journal):
    journal.write(rows())
    reader = Journal(journal.path, read_only=True)
    assert assert_same_slices(reader, 1, range(5)) == [0, 1, 2, 3, 4]
    reader.close()


class Counted(Journal):
    """A journal that tells when it forgets."""

    def __init__(self, path):
        super().__init__(path)
        self.pruned = threading.Semaphore(0)

    def prune(self, older_than_s, max_bytes):
        n_forgotten = super().prune(older_than_s, max_bytes)
        self.pruned.release()
        return n_forgotten


def test_what_is_old_is_forgotten_while_nothing_comes(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_writer, "PRUNE_EVERY_S", 0.01)
    journal = Counted(tmp_path / "journal.db")
    writer = JournalWriter(journal, lambda: None, 90.0, 10**9)
    writer.start()
    for _ in range(3):
        assert journal.pruned.acquire(timeout=60)
    writer.close()


def test_journals_put_aside_are_forgotten_like_stacks(tmp_path):
    path = tmp_path / "journal.db"
    for name, time_s in (("journal.damaged-1.db", 10), ("journal.damaged-1.db-wal", 10)):
        (tmp_path / name).write_bytes(b"ids")
        os.utime(tmp_path / name, (time_s, time_s))
    for kept in (path, tmp_path / "journal.damaged-2.db", tmp_path / "lock"):
        kept.write_bytes(b"")
        os.utime(kept, (30, 30) if "damaged" in kept.name else (10, 10))
    forget_put_aside(path, 20)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["journal.damaged-2.db", "journal.db", "lock"]
