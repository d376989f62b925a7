"""When slices come regularly a rehearsal is planned before the next, in time and no longer than allowed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcm_daemon.core.rhythm import (
    EARLIEST_S,
    MARGIN,
    MOST_UNSURE_S,
    N_INTERVALS,
    N_PASSES,
    Rhythm,
)

SHARE = 0.4


def play(rhythm: Rhythm, times_s: list[float]) -> None:
    for time_s in times_s:
        rhythm.arrived(time_s)


def rehearse(rhythm: Rhythm, now_s: float, takes_s: list[float]) -> list[tuple[float, float]]:
    """Make all passes there are, each taking what is told for its place; returns when they were made."""
    made = []
    while (wait_s := rhythm.wait_s(now_s)) is not None:
        begun_s = now_s + wait_s
        now_s = begun_s + takes_s[N_PASSES - rhythm.n_left]
        rhythm.rehearsed(begun_s, now_s)
        made.append((begun_s, now_s))
    return made


def at_10_a_second(n: int, begin_s: float = 100.0) -> list[float]:
    return [begin_s + 0.1 * i for i in range(n)]


def test_nothing_is_rehearsed_before_the_rhythm_is_known():
    rhythm = Rhythm(SHARE)
    assert rhythm.wait_s(0.0) is None
    for time_s in at_10_a_second(N_INTERVALS):  # one interval fewer
        rhythm.arrived(time_s)
        assert rhythm.wait_s(time_s) is None


def test_all_passes_are_made_just_before_the_next_slice():
    rhythm = Rhythm(SHARE)
    takes_s = [0.006, 0.005, 0.004, 0.004, 0.004, 0.005, 0.005, 0.005]
    for now_s in at_10_a_second(15):
        rhythm.arrived(now_s)
        made = rehearse(rhythm, now_s, takes_s)
    assert len(made) == N_PASSES
    end_s = now_s + 0.1 - EARLIEST_S
    assert end_s - (MARGIN - 1) * takes_s[-1] - 1e-9 <= made[-1][1] <= end_s


def test_where_time_is_short_the_last_passes_are_made_for_they_do_most():
    rhythm = Rhythm(SHARE)
    takes_s = [0.012] * N_PASSES
    times = at_10_a_second(12)
    for time_s in times:
        rhythm.arrived(time_s)
        rehearse(rhythm, time_s, takes_s)
    rhythm.arrived(times[-1] + 0.1)
    assert rhythm.n_left == int(SHARE * 0.1 / (MARGIN * 0.012)) == 3


def test_what_takes_longer_than_allowed_is_not_rehearsed():
    rhythm = Rhythm(SHARE)
    for time_s in at_10_a_second(20):
        rhythm.arrived(time_s)
        rehearse(rhythm, time_s, [0.2] * N_PASSES)
    rhythm.arrived(102.0)
    assert rhythm.wait_s(102.0) is None


def test_a_pause_and_a_burst_do_not_end_a_rhythm():
    rhythm = Rhythm(SHARE)
    play(rhythm, [0.0, 0.1, 0.2, 5.0, 5.001, 5.101])
    assert rhythm.wait_s(5.101) == pytest.approx(0.1 - EARLIEST_S - SHARE * 0.1)


def test_slices_without_rhythm_are_not_rehearsed_for():
    rhythm = Rhythm(SHARE)
    play(rhythm, [0.0, 0.1, 0.14, 0.30, 0.42, 0.46, 0.7])
    assert rhythm.wait_s(0.7) is None


def test_it_can_be_switched_off():
    rhythm = Rhythm(0.0)
    play(rhythm, at_10_a_second(20))
    assert rhythm.wait_s(102.0) is None


@given(
    st.floats(0.01, 1.0),
    st.lists(st.floats(1e-4, 0.06), min_size=N_PASSES, max_size=N_PASSES),
)
def test_once_passes_are_known_they_stay_within_their_share_and_end_in_time(interval_s, takes_s):
    """But for one that is tried again, seldom, since it did not fit, or was never made."""
    rhythm = Rhythm(SHARE)
    n_late, n_made = 0, 0
    for i in range(40):
        rhythm.arrived(100.0 + interval_s * i)
        made = rehearse(rhythm, 100.0 + interval_s * i, takes_s)
        end_s = 100.0 + interval_s * (i + 1) - EARLIEST_S + 1e-9
        taken_s = sum(ended_s - begun_s for begun_s, ended_s in made)
        assert all(begun_s <= end_s for begun_s, _ in made)
        assert taken_s <= SHARE * interval_s + max(takes_s)
        n_late += any(ended_s > end_s for _, ended_s in made)
        n_made += len(made)
    assert n_late <= N_PASSES
    assert n_made or MARGIN * max(takes_s) > SHARE * interval_s


def test_a_pass_that_was_held_up_once_is_made_again():
    rhythm = Rhythm(SHARE)
    usual = [0.0045] * N_PASSES
    n_made = []
    for i in range(40):
        rhythm.arrived(100.0 + 0.1 * i)
        held_up = [*usual[:-1], 0.045] if i == 20 else usual
        n_made.append(len(rehearse(rhythm, 100.0 + 0.1 * i, held_up)))
    assert n_made[19] == N_PASSES
    assert n_made[-1] == N_PASSES


@pytest.mark.parametrize("held_up_s", [0.02, 0.06, 0.1, 0.2])
def test_a_first_pass_that_was_held_up_is_made_again_soon(held_up_s):
    rhythm = Rhythm(SHARE)
    n_made = []
    for i in range(30):
        rhythm.arrived(100.0 + 0.1 * i)
        takes_s = [held_up_s if not any(n_made) else 0.0045, *([0.0045] * (N_PASSES - 1))]
        n_made.append(len(rehearse(rhythm, 100.0 + 0.1 * i, takes_s)))
    assert min(n_made[18:]) >= N_PASSES - 1  # but for the first one, and the last ones do most


def test_a_machine_that_was_slow_for_a_while_is_tried_again():
    rhythm = Rhythm(SHARE)
    n_made = []
    for i in range(1_000):
        rhythm.arrived(100.0 + 0.1 * i)
        takes_s = [0.06 if i < 100 else 0.004] * N_PASSES
        n_made.append(len(rehearse(rhythm, 100.0 + 0.1 * i, takes_s)))
    assert sum(n_made[20:100]) <= 4
    assert n_made[-1] == N_PASSES


def test_where_a_rehearsal_begins_late_its_last_passes_are_made():
    rhythm = Rhythm(SHARE)
    for i in range(10):
        rhythm.arrived(100.0 + 0.1 * i)
        rehearse(rhythm, 100.0 + 0.1 * i, [0.004] * N_PASSES)
    rhythm.arrived(101.0)
    late_s = 101.1 - EARLIEST_S - 0.0181
    assert rhythm.wait_s(late_s) == pytest.approx(0.0181 - MARGIN * 4 * 0.004)
    assert rhythm.n_left == 4


@given(st.floats(0.03, 1.0), st.lists(st.floats(-1.0, 1.0), min_size=6, max_size=20), st.floats(0.0, 0.005))
def test_a_jittery_microscope_gets_as_much_more_room(interval_s, deviations, jitter_s):
    rhythm = Rhythm(SHARE)
    times = [100.0 + interval_s * i + jitter_s * d for i, d in enumerate(deviations)]
    play(rhythm, times)
    if rhythm.wait_s(times[-1]) is not None:
        assert rhythm._end_s <= times[-1] + interval_s + 2 * jitter_s - EARLIEST_S + 1e-9
        assert rhythm._end_s >= times[-1] + interval_s - 2 * jitter_s - MOST_UNSURE_S - 1e-9
