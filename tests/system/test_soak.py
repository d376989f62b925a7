"""The soak, short on every change and long under `make slow`."""

from __future__ import annotations

import pytest
from soak import MAX_GROWTH_MB_AN_HOUR, MAX_MORE_DESCRIPTORS, run_soak


@pytest.mark.hazard("H37")
@pytest.mark.hazard("H38")
@pytest.mark.hazard("H39")
@pytest.mark.timeout(600)
def test_half_a_minute_at_full_rate_loses_nothing_unreported(tmp_path, capsys):
    report = run_soak(tmp_path, 0.5)
    with capsys.disabled():
        print(f"\n{report}")
    assert not report.faults
    assert report.n_slices > 0
    assert report.is_good
    assert report.n_descriptors[1] - report.n_descriptors[0] <= MAX_MORE_DESCRIPTORS


@pytest.mark.slow
@pytest.mark.hazard("H36")
@pytest.mark.timeout(7_200)
def test_half_an_hour_at_full_rate_does_not_grow(tmp_path, capsys):
    report = run_soak(tmp_path, 30)
    with capsys.disabled():
        print(f"\n{report}")
    assert not report.faults
    assert report.growth.mb_an_hour < MAX_GROWTH_MB_AN_HOUR
    assert report.n_descriptors[1] - report.n_descriptors[0] <= MAX_MORE_DESCRIPTORS
