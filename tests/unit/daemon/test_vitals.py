"""The watchdog is fed by progress and nothing else."""

from __future__ import annotations

import pytest

from rcm_daemon import vitals as module
from rcm_daemon.settings import load_settings
from rcm_daemon.vitals import Vitals


class FakeDoor:
    is_alive = True


@pytest.fixture
def said(monkeypatch):
    said = []
    monkeypatch.setattr(module.Manager, "tell", lambda self, state, patience_s=0: said.append(state))
    return said


def health():
    return {
        "state": "serving",
        "n_open_stacks": 1,
        "n_slices": 7,
        "n_waiting": 2,
        "n_rejected": 3,
        "n_lost": 4,
    }


def beat(vitals, now_s, n_waiting=1, n_done=0):
    vitals.beat(now_s, n_waiting, n_done, health)


def n_fed(said):
    return said.count("WATCHDOG=1")


@pytest.mark.hazard("H53")
def test_a_dead_authenticator_stops_the_feeding_at_once(said, caplog):
    door = FakeDoor()
    vitals = Vitals(load_settings(None, {}), door)
    beat(vitals, 0.0)
    assert (n_fed(said), vitals.is_sound) == (1, True)
    door.is_alive = False
    for now_s in (0.1, 0.2, 5.0):
        beat(vitals, now_s)
    assert (n_fed(said), vitals.is_sound) == (1, False)
    assert [record.message for record in caplog.records] == ["watchdog not fed"]
    assert said[-1].startswith("STATUS=the authenticator is dead: 1 open stacks, 7 slices, 2 waiting")


@pytest.mark.hazard("H48")
def test_slices_that_wait_and_never_get_done_stop_the_feeding(said):
    vitals = Vitals(load_settings(None, {"slice_timeout_s": 5}), FakeDoor())
    beat(vitals, 0.0)
    beat(vitals, 70.0)
    assert n_fed(said) == 2
    beat(vitals, 70.1)
    assert (n_fed(said), vitals.is_sound) == (2, False)
    beat(vitals, 71.0, n_done=1)
    assert (n_fed(said), vitals.is_sound) == (3, True)
    beat(vitals, 1_000.0, n_waiting=0, n_done=1)
    assert n_fed(said) == 4


def test_status_is_said_when_it_changes_and_not_more_often(said):
    vitals = Vitals(load_settings(None, {}), FakeDoor())
    for now_s in (0.0, 0.1, 2.0, 4.0):
        beat(vitals, now_s)
    expected = "STATUS=serving: 1 open stacks, 7 slices, 2 waiting, 3 rejected, 4 lost"
    assert [state for state in said if state.startswith("STATUS")] == [expected]
