"""The watchdog's question: does what waits get done?"""

from __future__ import annotations

from rcm_daemon.core.progress import Progress


def test_only_waiting_work_that_does_not_move_is_a_stall():
    progress = Progress(10.0)
    assert not progress.is_stalled(0.0, n_waiting=1, n_done=0)
    assert not progress.is_stalled(10.0, n_waiting=5, n_done=0)
    assert progress.is_stalled(10.1, n_waiting=5, n_done=0)
    assert not progress.is_stalled(10.2, n_waiting=5, n_done=1)  # one got done
    assert not progress.is_stalled(20.0, n_waiting=5, n_done=1)
    assert progress.is_stalled(20.3, n_waiting=5, n_done=1)
    assert not progress.is_stalled(30.0, n_waiting=0, n_done=1)  # nothing waits
    assert not progress.is_stalled(39.0, n_waiting=1, n_done=1)
    assert progress.is_stalled(40.1, n_waiting=1, n_done=1)
