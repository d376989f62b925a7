"""kill -9 at random moments of acknowledged streams: nothing acknowledged is lost."""

from __future__ import annotations

import threading

import pytest
from kills import run_kills


@pytest.mark.hazard("H26")
@pytest.mark.hazard("H49")
@pytest.mark.hazard("H50")
@pytest.mark.timeout(600)
def test_twenty_kills_lose_nothing_that_was_acknowledged(tmp_path, capsys):
    report = run_kills(tmp_path, 20, 7, threading.Event())
    with capsys.disabled():
        print(f"\n{report}")
    assert not report.faults
    assert report.n_kills == 20
    assert report.n_start_kills > 0
    assert report.n_slices > 20


@pytest.mark.slow
@pytest.mark.hazard("H26")
@pytest.mark.timeout(7_200)
def test_five_hundred_kills_lose_nothing_that_was_acknowledged(tmp_path, capsys):
    report = run_kills(tmp_path, 500, 11, threading.Event())
    with capsys.disabled():
        print(f"\n{report}")
    assert not report.faults
    assert report.n_kills == 500
    assert report.n_unserved > 0
