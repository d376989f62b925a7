"""Every message is accounted for: opened, embedded, repeated, refused, missing or lost."""

from __future__ import annotations

import numpy as np
import pytest
from desk import Desk, indices
from hypothesis import given
from hypothesis import strategies as st
from sender import Sender, picture

from rcm_daemon.core.ended import MAX_ENDED_KEPT, Ended, EndedStacks
from rcm_daemon.core.rejection import Rejection, Rule
from rcm_daemon.core.wire import parse


@pytest.fixture
def desk():
    return Desk()


def test_whole_stack_is_complete(desk, sender):
    desk.send(sender.start("s", 3))
    stack = desk.stack
    for i in range(3):
        desk.send(sender.slice("s", i))
    assert stack.state == "open"
    assert (stack.n_expected, stack.missing_index, stack.flags) == (3, [], [])
    outcome = desk.send(sender.end("s", 3))
    assert outcome.changed == [stack]
    assert stack.state == "complete"
    assert desk.ledger.open_stacks() == []
    assert desk.ledger.n_lost("m1") == 0


@pytest.mark.hazard("H12")
@pytest.mark.parametrize("keys", [{"z_um": float("nan")}, {"htype": "picture"}])
def test_what_is_refused_at_the_door_is_not_lost_as_well(desk, sender, keys):
    desk.send(sender.slice("s", 0))
    with pytest.raises(Rejection) as caught:
        parse(sender.slice("s", 1, **keys))
    assert desk.ledger.refuse(caught.value) is desk.stack
    desk.send(sender.slice("s", 2))
    stack = desk.stack
    assert (stack.missing_index, stack.rejected_index, desk.ledger.n_lost("m1")) == ([], [1], 0)


@pytest.mark.hazard("H19")
def test_missing_start_is_flagged(desk, sender):
    sender.lose()
    desk.send(sender.slice("s", 0))
    assert desk.stack.flags == ["start_missing"]
    assert desk.stack.n_expected == 0
    assert desk.ledger.n_lost("m1") == 1


def test_late_start_is_taken(desk, sender):
    late = sender.start("s", 4)
    desk.send(sender.slice("s", 0))
    desk.send(late)
    assert (desk.stack.flags, desk.stack.n_expected, desk.stack.acquisition) == ([], 4, 1)
    assert desk.ledger.n_lost("m1") == 0


@pytest.mark.hazard("H18")
def test_holes_are_missing_and_the_stack_incomplete(desk, sender):
    desk.send(sender.start("s", 6))
    desk.send(sender.slice("s", 0))
    sender.lose(2)
    desk.send(sender.slice("s", 3))
    stack = desk.stack
    assert stack.missing_index == [1, 2]
    assert desk.ledger.n_lost("m1") == 2
    desk.send(sender.end("s", 6))
    assert stack.missing_index == [1, 2, 4, 5]
    assert stack.state == "incomplete"


def test_loss_at_the_end_is_seen_by_heartbeat(desk, sender):
    desk.send(sender.start("s"))
    sender.lose(3)
    outcome = desk.send(sender.heartbeat("s"))
    assert outcome.changed == [desk.stack]
    assert desk.ledger.n_lost("m1") == 3
    assert desk.send(sender.heartbeat("s")).changed == []


@pytest.mark.hazard("H15")
@pytest.mark.hazard("H16")
def test_repeats_are_idempotent_and_conflicts_keep_the_first(desk, sender):
    desk.send(sender.start("s"))
    desk.send(sender.slice("s", 0, picture(1)))
    again = desk.send(sender.slice("s", 0, picture(1)))
    assert (again.status, again.embed) == ("duplicate", None)
    assert desk.send(sender.slice("s", 0, picture(2))).status == "conflict"
    assert desk.send(sender.slice("s", 0, picture(1), z_um=1.0)).status == "conflict"
    assert desk.send(sender.slice("s", 0, picture(1), max_value=200)).status == "conflict"
    assert (desk.stack.n_conflicts, desk.stack.conflict_index) == (3, [0])
    assert indices(desk.stack) == [0]


@pytest.mark.hazard("H13")
@pytest.mark.hazard("H17")
@given(st.permutations(range(8)))
def test_any_order_gives_the_same_stack(order):
    desk, sender = Desk(), Sender()
    desk.send(sender.start("s", 8))
    for i in order:
        desk.send(sender.slice("s", i, z_um=3.0 * i - 12))
    stack = desk.stack
    assert indices(stack) == list(range(8))
    assert stack.estimate.labels.tolist() == [0, 0, 0, 0, 0, 0, 0, 1]
    assert stack.flags == []


@pytest.mark.hazard("H14")
def test_stage_moving_up_is_flagged(desk, sender):
    for i in range(4):
        desk.send(sender.slice("s", i, z_um=-3.0 * i))
    assert desk.stack.flags == ["start_missing", "z_reversed"]
    assert indices(desk.stack) == [3, 2, 1, 0]


def test_a_scan_that_turns_back_for_a_depth_now_and_then_is_not_reversed(desk, sender):
    """As under advice: down to below a boundary, then back and forth around it."""
    for i, z_um in enumerate([0, 6, 12, 18, 24, 15, 21, 13.5, 10.5]):
        desk.send(sender.slice("s", i, z_um=z_um))
    assert desk.stack.flags == ["start_missing"]
    for i, z_um in enumerate([22.5, 19.5, 16.5, 7.5, 4.5], start=9):
        desk.send(sender.slice("s", i, z_um=z_um))
    assert desk.stack.flags == ["start_missing"]


def test_equal_depths_are_ordered_by_index_and_flagged(desk, sender):
    desk.send(sender.start("s"))
    for i in (2, 0, 1):
        desk.send(sender.slice("s", i, z_um=5.0))
    assert indices(desk.stack) == [0, 1, 2]
    assert desk.stack.flags == ["equal_z"]


@pytest.mark.hazard("H20")
def test_instruments_are_isolated(desk):
    one, two = Sender("m1"), Sender("m2")
    for i in range(3):
        desk.send(one.slice("s", i))
        desk.send(two.slice("s", i, z_um=100.0 + i))
    assert [(s.instrument, indices(s)) for s in desk.ledger.open_stacks()] == [
        ("m1", [0, 1, 2]),
        ("m2", [0, 1, 2]),
    ]
    assert desk.ledger.n_lost_now == 0


@pytest.mark.parametrize(("n_planned", "state"), [(0, "complete"), (2, "complete"), (5, "incomplete")])
def test_another_stack_ends_the_open_one(desk, sender, n_planned, state):
    desk.send(sender.start("s", n_planned))
    first = desk.stack
    desk.send(sender.slice("s", 0))
    desk.send(sender.slice("s", 1))
    outcome = desk.send(sender.start("t"))
    assert outcome.changed[0] is first
    assert first.state == state
    assert desk.stack.stack_id == "t"


def test_a_stack_without_count_that_lost_messages_is_not_complete(desk, sender):
    desk.send(sender.slice("s", 0))
    stack = desk.stack
    sender.lose(3)
    desk.send(sender.slice("t", 0))
    assert stack.state == "incomplete"


@pytest.mark.parametrize("n_planned", [0, 2])
def test_a_stack_that_another_run_ends_is_complete_only_if_its_count_proves_it(desk, n_planned):
    first, second = Sender(run_id="r1"), Sender(run_id="r2")
    for frames in (first.start("s", n_planned), first.slice("s", 0), first.slice("s", 1)):
        desk.send(frames)
    stack = desk.stack
    desk.send(second.start("t"))
    assert stack.state == ("complete" if n_planned else "incomplete")


@pytest.mark.hazard("H22")
def test_an_id_is_known_ten_thousand_stacks_later_and_what_is_forgotten_is_counted():
    desk, sender = Desk(), Sender()
    desk.send(sender.slice("first", 0, picture(0, (1, 1))))
    for i in range(MAX_ENDED_KEPT):
        desk.send(sender.slice(f"s{i}", 0, picture(0, (1, 1))))
    assert desk.refused(sender.slice("first", 1, picture(1, (1, 1)))) is Rule.STACK_ENDED
    assert desk.ledger.n_forgotten == 0
    desk.send(sender.slice("t", 0, picture(0, (1, 1))))
    assert desk.ledger.n_forgotten == 1
    assert desk.send(sender.slice("first", 2, picture(2, (1, 1)))).status == "accepted"


def test_slice_of_a_new_id_opens_a_stack(desk, sender):
    desk.send(sender.slice("s", 0))
    outcome = desk.send(sender.slice("t", 0))
    assert [s.stack_id for s in outcome.changed] == ["s"]
    assert desk.stack.stack_id == "t"


def test_slice_of_an_ended_stack_is_refused_and_a_start_opens_another_acquisition(desk, sender):
    desk.send(sender.start("s"))
    desk.send(sender.slice("s", 0))
    desk.send(sender.end("s", 1))
    assert desk.refused(sender.slice("s", 1)) is Rule.STACK_ENDED
    assert desk.refused(sender.end("s", 2)) is Rule.STACK_ENDED
    desk.send(sender.start("s"))
    assert (desk.stack.acquisition, len(desk.stack.partial)) == (2, 0)
    assert desk.ledger.n_lost("m1") == 0


def test_repeated_start_and_end_do_nothing(desk, sender):
    start, end = sender.start("s"), sender.end("s", 0)
    desk.send(start)
    assert desk.send(start).status == "duplicate"
    desk.send(end)
    assert desk.send(end).status == "duplicate"
    assert desk.send(start).status == "duplicate"
    assert desk.ledger.open_stacks() == []


def test_second_start_of_an_open_stack_begins_it_again(desk, sender):
    desk.send(sender.start("s", 4))
    first = desk.stack
    desk.send(sender.slice("s", 0))
    desk.send(sender.start("s", 4))
    assert first.state == "incomplete"
    assert desk.stack.acquisition == 2


def test_end_of_a_stack_never_seen_is_refused(desk, sender):
    assert desk.refused(sender.end("s", 3)) is Rule.STACK_NOT_OPEN


def test_aborted(desk, sender):
    desk.send(sender.start("s", 9))
    stack = desk.stack
    desk.send(sender.end("s", 0, "aborted"))
    assert stack.state == "aborted"


@pytest.mark.hazard("H21")
def test_idle_stack_is_abandoned_and_reopened_by_a_slice():
    desk, sender = Desk(idle_timeout_s=10), Sender()
    desk.send(sender.start("s"))
    stack = desk.stack
    desk.now_s = 9.0
    desk.send(sender.slice("s", 0))
    assert desk.ledger.next_expiry_s() == 19.0
    desk.now_s = 18.9
    assert desk.ledger.expire(desk.now_s) == []
    desk.send(sender.heartbeat("s"))
    assert desk.ledger.next_expiry_s() == 28.9
    assert desk.ledger.expire(28.9) == [stack]
    assert stack.state == "abandoned"
    desk.send(sender.slice("s", 1))
    assert (stack.state, indices(stack), desk.stack) == ("open", [0, 1], stack)
    desk.ledger.expire(99.0)
    desk.send(sender.end("s", 2))
    assert stack.state == "complete"


def test_abandoned_stack_stays_so_after_another_came(desk, sender):
    desk.send(sender.slice("s", 0))
    desk.ledger.expire(1e9)
    desk.send(sender.slice("t", 0))
    assert desk.refused(sender.slice("s", 1)) is Rule.STACK_ENDED


def test_a_stack_whose_bundle_is_gone_stays_abandoned_at_its_end_until_its_slices_came_again(desk, sender):
    slices = [sender.slice("s", i) for i in range(2)]
    for frames in slices:
        desk.ledger.accept(parse(frames), 0.0)
    stack = desk.stack
    desk.ledger.abandon(stack, Rule.BUNDLE_GONE, "it is gone")
    desk.send(sender.end("s", 2))
    assert (stack.state, stack.missing_index, stack.rejected_index) == ("abandoned", [], [0, 1])
    for frames in slices:
        desk.send(frames)
    desk.send(sender.end("s", 2))
    assert (stack.state, indices(stack)) == ("complete", [0, 1])


@pytest.mark.hazard("H56")
def test_new_run_is_no_loss_and_the_old_one_is_refused(desk):
    old, new = Sender(run_id="a"), Sender(run_id="b")
    desk.send(old.start("s"))
    desk.send(old.slice("s", 0))
    desk.send(new.slice("s", 1))
    assert desk.ledger.n_lost("m1") == 0
    assert (indices(desk.stack), desk.stack.run_id) == ([0, 1], "b")
    assert desk.refused(old.slice("s", 2)) is Rule.OLD_RUN
    assert desk.stack.n_rejected == 0


@pytest.mark.parametrize(
    ("keys", "rule"),
    [
        ({"image": picture(1, (32, 64))}, Rule.SHAPE_CHANGED),
        ({"image": picture(1).astype(np.uint16)}, Rule.DTYPE_CHANGED),
        ({"image": picture(1), "pixel_size_um": 1.0}, Rule.PITCH_CHANGED),
    ],
)
def test_change_within_a_stack_is_refused_and_reported(desk, sender, keys, rule):
    desk.send(sender.start("s", 2))
    desk.send(sender.slice("s", 0))
    assert desk.refused(sender.slice("s", 1, **keys)) is rule
    stack = desk.stack
    assert (stack.n_rejected, stack.rejected_index, stack.missing_index) == (1, [1], [])
    assert stack.rejected_reason[0].startswith(f"R{rule.value}")
    assert desk.ledger.n_lost("m1") == 0


def test_what_is_known_of_ended_stacks_is_small_and_comes_back_as_it_was():
    known = EndedStacks()
    for number in range(MAX_ENDED_KEPT + 5):
        known.remember(f"s{number}", Ended(number, None, bytes(range(8)), "aborted"))
    assert known.get("s4") is None
    assert known.get("s5") == Ended(5, None, bytes(range(8)), "aborted")
    known.remember("s5", Ended(6, b"startend", None, "incomplete"))
    known.remember("s-1", Ended(1, None, None, "complete"))
    assert known.get("s5") == Ended(6, b"startend", None, "incomplete")
    assert known.get("s6") is None
    known.forget("s5")
    assert known.get("s5") is None


def test_a_stack_that_ends_again_and_again_takes_one_place():
    known = EndedStacks()
    known.remember("other", Ended(1, None, None, "complete"))
    for number in range(MAX_ENDED_KEPT):
        known.remember("s", Ended(number, None, None, "abandoned"))
    assert (known.get("other"), known.n_forgotten) == (Ended(1, None, None, "complete"), 0)


@given(
    st.lists(
        st.tuples(st.sampled_from(["remember", "forget"]), st.integers(0, 40), st.integers(0, 2**32 - 1)),
        max_size=80,
    )
)
def test_ended_stacks_are_known_as_a_plain_dictionary_would_know_them(steps):
    known, expected = EndedStacks(), {}
    for what, name, acquisition in steps:
        expected.pop(name, None)
        if what == "remember":
            expected[name] = Ended(acquisition, bytes([name + 1] * 8), None, "complete")
            known.remember(f"s{name}", expected[name])
        else:
            known.forget(f"s{name}")
        assert len(known) == len(expected)
        assert known.get(f"s{name}") == expected.get(name)
    assert {name: known.get(f"s{name}") for name in range(41)} == {n: expected.get(n) for n in range(41)}
