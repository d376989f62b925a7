"""Message numbers: what is counted as lost equals what a plain set says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rcm_daemon.core.numbering import Numbering


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=60))
def test_equals_a_set(events):
    numbering = Numbering()
    seen: set[int] = set()
    highest = -1
    for is_heartbeat, number in events:
        if is_heartbeat:
            numbering.observe_highest(number)
        else:
            expected = "new" if number > highest else ("repeated" if number in seen else "late")
            assert numbering.observe(number) == expected
            seen.add(number)
        highest = max(highest, number)
        assert numbering.n_lost == highest + 1 - len(seen)


def test_a_huge_number_costs_no_memory():
    numbering = Numbering()
    numbering.observe(2**53 - 1)
    assert numbering.n_lost == 2**53 - 1
    assert numbering.observe(5) == "late"
    assert numbering.n_lost == 2**53 - 2


def test_first_heartbeat_of_an_idle_controller_loses_nothing():
    numbering = Numbering()
    numbering.observe_highest(-1)
    assert numbering.n_lost == 0


def test_late_messages_do_not_grow_the_list_of_holes():
    numbering = Numbering(max_ranges=10)
    numbering.observe(1_000_000)
    assert [numbering.observe(number) for number in range(1, 100, 2)].count("late") == 50
    assert numbering.n_lost == 1_000_000 - 50
    assert numbering.observe(0) == "repeated"
