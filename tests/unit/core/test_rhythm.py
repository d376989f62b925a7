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
    times = at_10_a_second(8)
    play(rhythm, times[:6])
    rehearse(rhythm, times[5], takes_s)  # how long each takes is known from here on
    for now_s, next_s in zip(times[6:], [*times[7:], times[7] + 0.1], strict=True):
        rhythm.arrived(now_s)
        made = rehearse(rhythm, now_s, takes_s)
        assert len(made) == N_PASSES
        assert made[-1][1] <= next_s - EARLIEST_S + 1e-9
        assert made[-1][1] >= next_s - EARLIEST_S - MARGIN * sum(takes_s) * 0.05 - 1e-9


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
    """Until then one may be begun too late, and of what follows nothing."""
    rhythm = Rhythm(SHARE)
    made = []
    for i in range(4 * N_PASSES):
        rhythm.arrived(100.0 + interval_s * i)
        made = rehearse(rhythm, 100.0 + interval_s * i, takes_s)
        end_s = 100.0 + interval_s * (i + 1) - EARLIEST_S + 1e-5
        assert all(begun_s <= end_s for begun_s, _ in made)
        assert sum(ended_s > end_s for _, ended_s in made) <= 1
    assert sum(ended_s - begun_s for begun_s, ended_s in made) <= SHARE * interval_s + 1e-5
    assert all(ended_s <= end_s for _, ended_s in made)
    assert made or MARGIN * max(takes_s) > SHARE * interval_s


@given(st.floats(0.03, 1.0), st.lists(st.floats(-1.0, 1.0), min_size=6, max_size=20), st.floats(0.0, 0.005))
def test_a_jittery_microscope_gets_as_much_more_room(interval_s, deviations, jitter_s):
    """A slice that comes earlier than the rehearsal ends deviates by more than all those before it."""
    rhythm = Rhythm(SHARE)
    times = [100.0 + interval_s * i + jitter_s * d for i, d in enumerate(deviations)]
    play(rhythm, times)
    if (wait_s := rhythm.wait_s(times[-1])) is not None:
        assert wait_s >= 0
        assert rhythm._end_s <= times[-1] + interval_s + 2 * jitter_s - EARLIEST_S + 1e-9
        assert rhythm._end_s >= times[-1] + interval_s - 2 * jitter_s - MOST_UNSURE_S - 1e-9
