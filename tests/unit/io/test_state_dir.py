"""The state folder: one holder at a time, numbers that never fall."""

from __future__ import annotations

import pytest

from rcm_daemon.errors import ConfigurationError
from rcm_daemon.io import state_dir as module
from rcm_daemon.io.state_dir import StateDir


def test_numbers_rise_by_one_over_a_clean_restart(tmp_path):
    state = StateDir(tmp_path / "a" / "b")
    first = [state.next_seq() for _ in range(5)]
    assert first == list(range(first[0], first[0] + 5))
    state.close()
    again = StateDir(tmp_path / "a" / "b")
    assert again.next_seq() == first[-1] + 1
    again.close()


def test_numbers_rise_over_a_crash_at_any_moment(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SEQ_BLOCK", 3)
    last = -1
    for n_given in range(8):
        state = StateDir(tmp_path)
        for _ in range(n_given):
            assert state.next_seq() > last
            last = state.seq
        state._lock.close()  # the process dies: nothing is given back


def test_numbers_rise_when_the_folder_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SEQ_BLOCK", 2)
    state = StateDir(tmp_path / "gone")
    (tmp_path / "gone" / "seq").unlink()
    (tmp_path / "gone" / "lock").unlink()
    (tmp_path / "gone").rmdir()
    given = [state.next_seq() for _ in range(6)]
    assert given == sorted(set(given))
    state.close()


@pytest.mark.hazard("H30")
def test_a_second_holder_is_refused(tmp_path):
    state = StateDir(tmp_path)
    with pytest.raises(ConfigurationError, match="is held by another daemon"):
        StateDir(tmp_path)
    state.next_seq()
    state.close()
    StateDir(tmp_path).close()


def test_a_spoilt_counter_is_reported_not_guessed(tmp_path):
    (tmp_path / "seq").write_text("many")
    with pytest.raises(ConfigurationError, match="must hold one whole number"):
        StateDir(tmp_path)


def test_the_salt_is_made_once_and_for_the_daemon_alone(tmp_path):
    state = StateDir(tmp_path)
    salt = state.salt()
    assert len(salt) == 32
    assert (tmp_path / "salt").stat().st_mode & 0o777 == 0o600
    state.close()
    again = StateDir(tmp_path)
    assert again.salt() == salt
    (tmp_path / "salt").write_bytes(salt[:9])
    with pytest.raises(ConfigurationError, match="must hold 32 bytes"):
        again.salt()
    again.close()
    other = StateDir(tmp_path / "other")
    assert other.salt() != salt
    other.close()


def test_the_folder_is_the_daemons_alone(tmp_path):
    StateDir(tmp_path / "state").close()
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
