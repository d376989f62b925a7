"""The soak, short on every change and long under `make slow`."""

from __future__ import annotations

import pytest
from soak import MAX_GROWTH_MB_AN_HOUR, MAX_MORE_DESCRIPTORS, account_published, reckon, run_soak


def result(stack_id, n_slices, **others):
    counts = {"n_missing": 0, "n_rejected": 0, "n_lost": 0, "start_seen": True, "n_expected": 3}
    return {"stack_id": stack_id, "n_slices": n_slices, **counts, **others}


def test_a_soak_without_results_of_a_publisher_has_a_fault():
    assert len(reckon([], 10, 0, 0)) == 1
    assert len(reckon([], 10, 10, 0)) == 1


def test_every_message_published_has_come_or_is_lost_or_refused():
    """Of four stacks of three slices: all, a hole, no start and no last slice and end, nothing at all."""
    results = [
        result("a", 3),
        result("b", 2, n_missing=1, n_lost=1),
        result("c", 2, n_lost=2, start_seen=False, n_expected=0),
    ]
    assert account_published(results, dict.fromkeys("abcd", 3)) == []
    n_lost = 1 + 3 + 5
    assert reckon(results, 20, n_lost, 0) == []
    assert reckon(results, 20, n_lost - 1, 1) == []
    assert len(reckon(results, 20, n_lost - 1, 0)) == 1
    assert len(reckon(results, 20, n_lost, 1)) == 1
    assert len(reckon(results[1:], 20, n_lost, 0)) == 1


def test_a_loss_within_a_stack_is_to_be_told():
    sent = {"a": 3}
    assert len(account_published([result("a", 2)], sent)) == 1
    assert len(account_published([result("a", 2, n_missing=1)], sent)) == 1
    assert account_published([result("a", 2, n_missing=1, n_lost=1)], sent) == []
    two = [result(name, 2, n_missing=1, n_lost=1) for name in "ab"]
    assert len(account_published(two, dict.fromkeys("ab", 3))) == 1


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
