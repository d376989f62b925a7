"""Revisions through kills, clean stops, power cuts and full disks."""

from __future__ import annotations

import errno
import json
import os

import pytest

from rcm_daemon.errors import ConfigurationError, RcmError
from rcm_daemon.io import revisions as module
from rcm_daemon.io.revisions import AHEAD, Revisions
from rcm_daemon.io.state_dir import StateDir

A, B = ("m1", "stäck", 1), ("m2", "s", 2)


class Machine:
    """Daemon after daemon on one state folder, each killed unless it is closed."""

    def __init__(self, folder, monkeypatch):
        self.folder, self._boot_id = folder, folder / "boot_id"
        self._folders = []
        monkeypatch.setattr(module, "BOOT_ID", self._boot_id)
        self.boot("first")

    def boot(self, boot_id):
        self._boot_id.write_text(f"{boot_id}\n")

    def kill(self):
        for state_dir in self._folders:
            state_dir._lock.close()

    def start(self):
        self.kill()
        self._folders.append(StateDir(self.folder / "state"))
        return Revisions(self._folders[-1])

    @property
    def file(self):
        return self.folder / "state/revisions"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    machine = Machine(tmp_path, monkeypatch)
    yield machine
    machine.kill()


def publish(revisions, stack, n, last=0):
    for _ in range(n):
        last = revisions.following(stack, last)
    return last


def test_a_killed_daemon_goes_on_by_one(machine):
    revisions = machine.start()
    assert publish(revisions, A, 7) == 7
    publish(revisions, B, 2)
    again = machine.start()
    assert again.resumed(A, written=3) == 7
    assert again.following(A, 3) == 8
    assert again.following(B, 0) == 3  # though the journal knows nothing of it
    assert machine.start().following(A, 3) == 9


def test_what_the_journal_says_counts_where_it_is_more(machine):
    machine.start()
    assert machine.start().resumed(A, written=5) == 5


@pytest.mark.parametrize("n_lost", [0, 1, 3, 6])
def test_after_a_power_cut_no_number_comes_twice(machine, n_lost):
    """The last lines were never synced, so that any number of them may be gone."""
    publish(machine.start(), A, 6)
    text = machine.file.read_bytes().rstrip(b"\0").splitlines(keepends=True)
    machine.file.write_bytes(b"".join(text[: len(text) - n_lost]) + bytes(1_000))
    machine.boot("second")
    revisions = machine.start()
    assert revisions.resumed(A, written=0) >= 6
    assert revisions.resumed(B, written=4) >= AHEAD  # of which the file knows nothing
    again = publish(revisions, A, 1)
    machine.boot("second")
    assert machine.start().following(A, 0) == again + 1


def test_a_clean_stop_survives_a_power_cut_and_what_came_after_it_is_no_clean_stop(machine):
    revisions = machine.start()
    publish(revisions, A, 6)
    revisions.close()
    machine.boot("second")
    revisions = machine.start()
    assert publish(revisions, A, 1) == 7
    machine.boot("third")
    assert machine.start().following(A, 0) > AHEAD


@pytest.mark.parametrize("damaged", ["", "[]\n", "nonsense\n", '["first", false]\n["m1"]\n', "\x00" * 50])
def test_a_damaged_file_is_a_power_cut(machine, damaged):
    publish(machine.start(), A, 6)
    machine.file.write_text(damaged)
    assert machine.start().resumed(A, written=6) == 6 + AHEAD


def test_a_line_cut_short_is_of_a_message_that_was_not_sent(machine):
    publish(machine.start(), A, 6)
    machine.file.write_bytes(machine.file.read_bytes().rstrip(b"\0")[:-4] + bytes(100))
    assert machine.start().following(A, 0) == 6


def test_the_file_stays_as_small_as_it_is(machine, monkeypatch):
    monkeypatch.setattr(module, "N_BYTES", 1_000)
    monkeypatch.setattr(module, "MAX_INSTRUMENTS_KEPT", 2)
    revisions = machine.start()
    for number in range(300):
        stack = (f"m{number % 4}", f"s{number}", 1)
        assert publish(revisions, stack, 3) == 3
        assert machine.file.stat().st_size <= 1_000
    again = machine.start()
    kept = [again.resumed((f"m{number % 4}", f"s{number}", 1), 0) for number in range(300)]
    assert [number for number, last in enumerate(kept) if last] == [298, 299]
    for number in range(8):
        again.following(("m3", f"t{number}", 1), 0)
    again = machine.start()
    assert [number for number in range(8) if again.resumed(("m3", f"t{number}", 1), 0)] == [5, 6, 7]
    lines = machine.file.read_bytes().rstrip(b"\0").splitlines()
    assert all(json.loads(line) for line in lines)


def test_a_full_disk_stops_nothing_and_is_said_once(machine, monkeypatch, caplog):
    revisions = machine.start()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        assert publish(revisions, A, 3) == 3
    assert caplog.text.count("revisions cannot be kept (No space left on device)") == 1
    assert publish(revisions, A, 1) == 4
    assert machine.start().following(A, 0) == 5


@pytest.mark.hazard("H33")
def test_a_disk_that_is_full_at_the_start_is_no_fault_of_the_configuration(machine, monkeypatch):
    """With another exit status than 78 the service manager tries again, until there is room."""
    machine.start()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("posix_fallocate", "fsync"):
        with monkeypatch.context() as patch, pytest.raises(RcmError, match="No space left") as caught:
            patch.setattr(os, name, full)
            machine.start()
        assert caught.value.exit_code == 1
    machine.start()


def test_a_folder_that_cannot_be_written_is_a_fault_of_the_configuration(machine, monkeypatch):
    machine.start()
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: os.open("/nowhere/at/all", os.O_RDONLY))
    with pytest.raises(ConfigurationError, match="cannot be written"):
        machine.start()
