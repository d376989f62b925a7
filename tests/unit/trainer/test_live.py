"""Live figures against cases worked by hand, and the whole live evaluation on a tiny set."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from seeded_bundles import write_seeded_bundle
from trainer_commands import run

from rcm_daemon.core.mosaic import MOSAICS
from rcm_daemon.core.pipeline import Estimation, Recurrence
from rcm_daemon.core.posterior import BoundaryPrior
from rcm_daemon.core.records import Boundary, MosaicDepth, StrataEstimate
from rcm_daemon.core.stack import EmbeddedSlice  # noqa: TC001
from trainer.advised import advised_run
from trainer.calibrate import FOUND_PROBABILITY, uncalibrated
from trainer.data.manifest import LabelledStack
from trainer.live_evaluation import (
    FOUND_FOR_GOOD,
    FOUND_PROBABILITIES,
    WAITS,
    _announcing,
    _by_quarter,
    _coverage,
    _of_probabilities,
    _places,
    _replay,
    _working_points,
)
from trainer.live_report import GONE, NEVER, _earliest
from trainer.live_runs import again, live_run, slices_of
from trainer.live_scores import (
    Announcement,
    announce,
    count,
    count_settled,
    coverages,
    mosaic_coverages,
    reliability,
)
from trainer.offline import StackRun

PRIOR = BoundaryPrior(60.0, 14.0, 45.0, 8.0, 5.0)
NOT = Boundary()


def at(um: float, low: float = 0.0, high: float = 0.0) -> Boundary:
    return Boundary("inside", um=um, low_um=low, high_um=high)


def said(*first: Boundary) -> list[StrataEstimate]:
    """Estimates whose first boundary is given after each slice, the second never found."""
    nothing = np.zeros((0, 3), np.float32)
    return [
        StrataEstimate(np.zeros(0, np.int64), nothing, nothing, np.zeros(0, np.bool_), (boundary, NOT))
        for boundary in first
    ]


LABELS = np.array([0, 0, 1, 1, 1, 1])


@pytest.mark.parametrize(
    ("boundaries", "wait", "expected"),
    [
        ((NOT, NOT, NOT, at(5), at(5), at(6)), 1, (2, 3, 3, False, False)),
        ((NOT, at(2), NOT, at(5), at(5), at(5)), 1, (2, 1, 3, True, False)),
        ((NOT, at(2), NOT, at(5), at(5), at(5)), 2, (2, 4, 4, False, False)),
        ((NOT, NOT, at(5), at(5), at(5), at(12)), 1, (2, 2, 2, False, True)),
        ((NOT, NOT, at(5), at(5), at(5), NOT), 1, (2, 2, None, True, False)),
        ((NOT,) * 6, 1, (2, None, None, False, False)),
        ((at(1),) * 6, 1, (2, 0, 0, False, False)),
    ],
)
def test_announcements_by_hand(boundaries, wait, expected) -> None:
    found = announce(said(*boundaries), LABELS, 0, wait)
    assert (found.crossed, found.first, found.for_good, found.withdrawn, found.moved) == expected
    assert found.first_um == (None if expected[1] is None else boundaries[expected[1]].um)
    late = expected[2]
    assert found.delay == (float("inf") if late is None else late - 2)


def test_a_boundary_the_stack_does_not_have_has_no_delay() -> None:
    found = announce(said(NOT, NOT), np.array([1, 1]), 0)
    assert found.crossed is None
    assert np.isnan(found.delay)


def test_announcements_are_told_by_the_quarter_of_the_stack() -> None:
    good = Announcement(crossed=0, first=1, for_good=1, withdrawn=False, moved=False)
    moved = Announcement(crossed=1, first=2, for_good=4, withdrawn=False, moved=True)
    never = Announcement(crossed=7, first=None, for_good=None, withdrawn=False, moved=False)
    absent = Announcement(crossed=None, first=7, for_good=None, withdrawn=True, moved=False)
    found = _by_quarter([good, moved, never, absent], [8] * 4)
    assert [one["n"] for one in found["crossed_in"]] == [2, 0, 0, 1]
    assert [one["n"] for one in found["announced_in"]] == [1, 1, 0, 1]
    assert found["crossed_in"][0]["median_delay_slices"] == 2
    assert found["crossed_in"][3]["median_delay_slices"] == NEVER
    assert np.isnan(found["announced_in"][2]["share_withdrawn_or_moved"])
    assert [one["share_withdrawn_or_moved"] for one in found["announced_in"][:2]] == [0, 1]


def test_how_far_off_a_boundary_is_announced_counts_what_never_was() -> None:
    """A stack of 6 slices from 0 to 15 um, whose first boundary lies at 4.5 um, announced thrice."""
    stack = replace(a_stack(6), labels=np.array([0, 0, 1, 1, 1, 1]))
    lacks = replace(stack, labels=np.zeros(6, np.int64))
    found = [
        Announcement(2, 1, 3, withdrawn=True, moved=False, first_um=6.5),
        Announcement(2, 3, None, withdrawn=True, moved=False, first_um=1.5),
        Announcement(2, None, None, withdrawn=False, moved=False),
        Announcement(None, 4, 4, withdrawn=False, moved=False, first_um=9.0),
    ]
    said = _announcing(
        found, [StackRun(s) for s in (stack, stack, stack, lacks)], 0, np.ones((5, 4), np.int64)
    )
    assert said["announced_mae_um"] == pytest.approx((2.0 + 3.0 + 10.5) / 3)
    assert said["announced_mae_um_interval"] == pytest.approx([said["announced_mae_um"]] * 2)
    assert (said["n"], said["n_never"], said["n_false"]) == (3, 2, 1)
    assert said["share_withdrawn_or_moved"] == pytest.approx(2 / 3)
    assert said["median_delay_slices"] == NEVER  # for good, of one in three
    assert said["median_delay_if_kept_slices"] == 1  # at -1, at 1, and never


def test_the_earliest_announcement_is_the_nearest_of_those_that_move_no_more_than_they_may() -> None:
    def point(delay, gone, off_um):
        return {
            "median_delay_slices": delay,
            "median_delay_if_kept_slices": delay - (delay < NEVER),
            "share_withdrawn_or_moved": gone / 100,
            "announced_mae_um": off_um,
        }

    points = {"a": point(3.0, 1.5, 6.0), "b": point(1.0, 4.0, 7.5), "c": point(1.0, 5.0, 7.0)}
    never = {"a": point(NEVER, 12.0, 50.0)}
    first, second = _earliest({"ours": {"announcing": {"epidermis_dej": points, "dej_dermis": never}}})[-2:]
    cells = [row.strip("| ").split(" | ")[2:] for row in (first, second)]
    assert list(GONE) == [0, 1, 2, 5, 10, 20]
    assert cells[0] == ["none", "none", "3.0 (6.0 um)", *["1.0 (7.0 um)"] * 3, "0.0 (7.0 um)"]
    assert cells[1] == [*["none"] * 5, "never (50.0 um)", "never (50.0 um)"]


def a_stack(n_slices: int = 50) -> LabelledStack:
    z_um = np.arange(n_slices) * 3.0
    return LabelledStack(
        stack="s",
        patient="p",
        site="",
        family="",
        files=(Path("x.tif"),) * n_slices,
        pages=tuple(range(n_slices)),
        z_um=z_um,
        pixel_size_um=0.5,
        labels=(z_um > 60).astype(np.int64) + (z_um > 105),
        readings={},
    )


def plain(stack: LabelledStack) -> tuple[EmbeddedSlice, ...]:
    return slices_of(stack, np.zeros((stack.n_slices, 4), np.float32))


def clear(embeddings, z_um, weight) -> Recurrence:
    rows = np.eye(3, dtype=np.float32)[(z_um > 60).astype(int) + (z_um > 105)]
    return Recurrence(rows, 0.5 * rows)


def test_counts_over_all_prefixes_of_a_clear_stack() -> None:
    stack = a_stack()
    done = live_run(stack, plain(stack), clear, Estimation(uncalibrated(PRIOR)))
    counts = count(done)
    assert counts.final == counts.n_slices == 50
    assert 45 <= counts.newest <= 50
    assert counts.n_impossible == 0
    assert counts.by_fraction[:, 1].sum() == 50 * 51 / 2
    assert counts.impossible_by_fraction[:, 1].sum() == 50
    first, second = counts.announcements
    assert first.delay <= 2
    assert second.delay <= 2
    assert not (first.withdrawn or first.moved or second.withdrawn or second.moved)
    assert (
        again(done, Estimation(uncalibrated(PRIOR))).estimates[-1].boundaries == done.estimates[-1].boundaries
    )


def test_working_points_announce_when_they_say() -> None:
    def dim(embeddings, z_um, weight) -> Recurrence:
        given = clear(embeddings, z_um, weight)
        return Recurrence(given.probabilities, 0.1 * given.evidence)

    run = StackRun(a_stack(), (plain(a_stack()),))

    def firsts(parameters) -> dict[str, int]:
        networks = SimpleNamespace(estimator_parameters=parameters, recur=dim)
        counts, points = _replay(run, 0, networks).counts, _working_points(networks)
        return {name: counts[n].announcements[0].first for name, n in _places(points, 0).items()}

    waits = firsts(None)
    assert {int(wait): first - waits["1"] for wait, first in waits.items()} == {n: n - 1 for n in WAITS}
    found = firsts(uncalibrated(PRIOR))
    for_good = {name for name in found if name.endswith(" for good")}
    assert for_good == {f"{p:g} for good" for p in (FOUND_PROBABILITY[0], *FOUND_FOR_GOOD)}
    assert all(found[name] == found[name.split()[0]] for name in for_good)
    # A bundle that keeps what it said is read both ways too, its own first.
    kept = firsts(uncalibrated(PRIOR, for_good=True))
    assert next(iter(kept)) == f"{FOUND_PROBABILITY[0]:g} for good"
    assert kept == found
    assert next(iter(found)) == f"{FOUND_PROBABILITY[0]:g}"
    in_order = [found[name] for name in sorted(set(found) - for_good, key=float)]
    assert in_order == sorted(in_order)
    assert found["0.3"] + 2 < found["0.65"] < found["0.98"] - 2


def test_what_is_kept_for_good_is_never_gone() -> None:
    def wavers(embeddings, z_um, weight) -> Recurrence:
        """Epidermis-DEJ at 60 um, which every second slice denies."""
        given = clear(embeddings, z_um, weight)
        denied = 0.5 * np.eye(3, dtype=np.float32)[np.zeros(len(z_um), int)]
        return Recurrence(given.probabilities, given.evidence if len(z_um) % 2 else denied)

    stack = a_stack(34)
    for for_good in (False, True):
        networks = SimpleNamespace(estimator_parameters=uncalibrated(PRIOR, for_good=for_good), recur=wavers)
        seen, points = _replay(StackRun(stack, (plain(stack),)), 0, networks), _working_points(networks)
        gone = {point.name[0]: seen.counts[n].announcements[0].withdrawn for n, point in enumerate(points)}
        assert [gone[name] for name in ("0.65", "0.65 for good", "0.5", "0.5 for good")] == [True, False] * 2


def test_impossible_transitions_are_counted_in_every_prefix_where_it_ends() -> None:
    stack = a_stack()
    done = live_run(stack, plain(stack), clear, Estimation(uncalibrated(PRIOR)))
    upside_down = tuple(replace(one, labels=one.labels[::-1]) for one in done.estimates)
    counts = count(replace(done, estimates=upside_down))
    n_changes = [int((np.diff(one.labels) != 0).sum()) for one in done.estimates]
    assert counts.n_impossible == sum(n_changes) > 0
    assert counts.impossible_by_fraction[-1].tolist() == [sum(n_changes[-2:]), 2]


def test_settled_labels_that_changed_are_counted_by_hand() -> None:
    def after(labels: list[int], settled: list[int]) -> StrataEstimate:
        nothing = np.zeros((len(labels), 3), np.float32)
        return StrataEstimate(np.array(labels), nothing, nothing, np.array(settled, np.bool_), (NOT, NOT))

    estimates = [
        after([0], [1]),  # changes for a while
        after([0, 0], [1, 0]),
        after([1, 1, 1], [0, 1, 0]),  # the second changes back
        after([0, 0, 1, 1], [1, 1, 1, 0]),
    ]
    assert count_settled(estimates) == (6, 3)


def test_probabilities_are_held_against_how_often_they_are_right() -> None:
    def after(rows: list[list[float]]) -> StrataEstimate:
        values = np.array(rows, np.float32)
        nothing = np.zeros(len(rows), np.int64)
        return StrataEstimate(nothing, values, values, nothing.astype(np.bool_), (NOT, NOT))

    estimates = [after([[0.85, 0.1, 0.05]]), after([[1.0, 0.0, 0.0], [0.1, 0.81, 0.09]])]
    sums = reliability(estimates, np.array([0, 2]))
    assert sums.sum(axis=0) == pytest.approx([3, 2.66, 2])
    assert sums[8] == pytest.approx([2, 1.66, 1])  # the second one is the readers' dermis
    assert sums[9] == pytest.approx([1, 1, 1])
    found = _of_probabilities(np.stack([sums, sums]), np.ones((1, 2), np.int64))
    assert found["calibration_error"] == pytest.approx(0.66 / 3)
    assert found["calibration_error_interval"] == pytest.approx([0.22, 0.22])
    assert found["reliability"] == [[0.83, 0.5, 4], [1.0, 1.0, 2]]


def test_intervals_hold_or_not() -> None:
    stack = replace(a_stack(6), boundaries_um=(5.5, 100.0))
    done = live_run(stack, plain(stack), clear, Estimation())
    estimates = said(NOT, NOT, at(5, 4, 6), at(5, 4, 9), at(5, 6, 7), at(5, 4, 6))
    given = [one for one in coverages(replace(done, estimates=tuple(estimates))) if one.place == 0]
    assert [one.holds for one in given] == [False, False, True, True, False, True]
    assert [one.kind for one in given] == ["forecast"] * 2 + ["inside"] * 4
    assert given[3].width_um == 5


def test_mosaics_that_are_planned_are_held_against_where_they_belong() -> None:
    stack = replace(a_stack(6), boundaries_um=(20.0, 40.0))  # belong at 14, 24, 30, 36 and 52 um
    done = live_run(stack, plain(stack), clear, Estimation())
    first = (MosaicDepth("spinosum", 12, 10, 15), MosaicDepth("upper_dej", 30, 25, 35))
    second = (MosaicDepth("middle_dej", 31, 30, 32), MosaicDepth("papillary_dermis", 55, 53, 60))
    estimates = [replace(one, mosaic=plan) for one, plan in zip(said(NOT, NOT), (first, second), strict=True)]
    given = mosaic_coverages(replace(done, estimates=tuple(estimates)))
    assert [(one.place, one.holds, one.width_um) for one in given] == [
        (0, True, 5),
        (1, False, 10),
        (2, True, 2),
        (4, False, 7),
    ]
    lacks = replace(done, estimates=tuple(estimates), stack=replace(stack, boundaries_um=(20.0, None)))
    assert [one.place for one in mosaic_coverages(lacks)] == [0]  # nobody knows where the others belong
    weights = np.ones((1, 2), np.int64)
    found = _coverage([given[:2], given[2:]], MOSAICS, weights)
    assert (found["all"]["share"], found["all"]["n"]) == (0.5, 4)
    assert (found["spinosum"]["share"], found["upper_dej"]["share"], found["lower_dej"]["n"]) == (1.0, 0.0, 0)


def test_advice_finds_both_boundaries_with_a_part_of_the_slices() -> None:
    stack = a_stack()
    advised = advised_run(stack, plain(stack), clear, Estimation(uncalibrated(PRIOR)))
    assert len(set(advised.taken)) == len(advised.taken) <= 25
    first, second = advised.estimate.boundaries
    assert first.um == pytest.approx(61.5, abs=3)
    assert second.um == pytest.approx(106.5, abs=3)


def test_the_live_evaluation_reports_every_bundle_on_the_same_stacks(work: Path, tmp_path) -> None:
    ours = write_seeded_bundle(tmp_path / "ours", "live")
    theirs = write_seeded_bundle(tmp_path / "theirs", "full-bigru")
    text = run(
        "evaluate", ours, "--beside", theirs, "--live", "--out", tmp_path / "report",
        "--data", work / "data", "--split", work / "cnn" / "split.json", "--workers", "1",
    )  # fmt: skip
    (one,) = json.loads((tmp_path / "report" / "evaluation.json").read_text())["sets"]
    assert list(one["live"]) == ["live", "full-bigru"]
    assert one["live"]["live"]["n_impossible"] == 0
    assert one["methods"]["live"]["impossible"]["total"] == 0
    assert one["live"]["live"]["n_settled"] >= 0
    assert one["live"]["full-bigru"]["n_settled"] == 0
    assert "live, read as the paper does" in one["methods"]
    assert set(one["live"]["live"]["coverage"]) == {"inside", "forecast"}
    assert "coverage" not in one["live"]["full-bigru"]
    points = list(one["live"]["live"]["announcing"]["dej_dermis"])
    parameters = json.loads((ours / "estimator.json").read_text())
    assert points[0] == f"{parameters['found_probability'][1]:g}"
    assert len(points) == len(set(points))
    assert {str(found) for found in FOUND_PROBABILITIES} <= set(points)
    assert list(one["live"]["full-bigru"]["announcing"]["dej_dermis"]) == [str(wait) for wait in WAITS]
    assert 0 < one["live"]["live"]["advice"]["share_used"] <= 1
    finished = one["live"]["live"]["advice"]["finished_by_fraction"]
    assert finished == sorted(finished)
    assert finished[-1] == 1
    for heading in ("Live labels", "Announcing", "Coverage of 90 % intervals", "Under advice"):
        assert f"### {heading}" in text
    assert (tmp_path / "report" / "live-1.png").stat().st_size > 10_000
