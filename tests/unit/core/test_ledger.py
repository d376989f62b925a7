"""Every message is accounted for: opened, embedded, repeated, refused, missing or lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sender import Sender, picture

from rcm_daemon.core.ledger import Ledger
from rcm_daemon.core.pipeline import take_in
from rcm_daemon.core.rejection import Rejection, Rule
from rcm_daemon.core.stack import EmbeddedSlice
from rcm_daemon.core.wire import parse


def recurrent(embeddings, z_um, weight):
    """Say epidermis above 9 um, DEJ to 21 um, dermis below."""
    labels = np.digitize(z_um, [9.0, 21.0])
    return np.eye(3, dtype=np.float32)[labels]


class Desk:
    """A ledger that is handed frames and embeds at once."""

    def __init__(self, **settings):
        self.ledger = Ledger(**settings)
        self.now_s = 0.0

    def send(self, frames):
        outcome = self.ledger.accept(parse(frames), self.now_s)
        if outcome.embed is not None:
            header = parse(frames).header
            new = EmbeddedSlice(header.index, header.z_um, np.zeros(4, np.float32))
            take_in(self.ledger, outcome.embed, new, recurrent)
        return outcome

    @property
    def stack(self):
        (stack,) = self.ledger.open_stacks()
        return stack

    def refused(self, frames):
        with pytest.raises(Rejection) as caught:
            self.send(frames)
        return caught.value.rule


@pytest.fixture
def desk():
    return Desk()


def indices(stack):
    return [s.index for s in stack.partial.slices]


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


def refuse(desk, frames):
    with pytest.raises(Rejection) as caught:
        parse(frames)
    return desk.ledger.refuse(caught.value)


def test_malformed_message_is_counted_once_and_reported_by_its_stack(desk, sender):
    desk.send(sender.start("s"))
    assert refuse(desk, sender.slice("s", 0, crc32=1)) is desk.stack
    desk.send(sender.slice("s", 1))
    stack = desk.stack
    assert (stack.rejected_index, stack.missing_index) == ([0], [])
    assert desk.ledger.n_lost("m1") == 0


def test_malformed_slice_before_its_stack_is_open_is_reported_by_it(desk, sender):
    assert refuse(desk, sender.slice("s", 0, crc32=1)) is None
    desk.send(sender.slice("s", 1))
    assert desk.stack.rejected_index == [0]
    assert desk.ledger.n_lost("m1") == 0


def test_unreadable_message_is_a_hole(desk, sender):
    desk.send(sender.start("s"))
    header, blob = sender.slice("s", 0)
    refuse(desk, [header[:-1], blob])
    desk.send(sender.slice("s", 1))
    assert (desk.ledger.n_lost("m1"), desk.stack.missing_index) == (1, [0])


@pytest.mark.hazard("H22")
def test_instruments_beyond_the_limit_are_refused_and_none_is_evicted():
    desk = Desk(max_instruments=3)
    for i in range(3):
        desk.send(Sender(f"m{i}").slice("s", 0))
    for i in range(3, 10_003):
        assert desk.refused(Sender(f"m{i}").slice("s", 0, picture(0, (1, 1)))) is Rule.TOO_MANY_INSTRUMENTS
    assert [s.instrument for s in desk.ledger.open_stacks()] == ["m0", "m1", "m2"]


def test_unusable_slice_is_reported_and_may_come_again(desk, sender):
    frames = sender.slice("s", 0)
    stack = desk.ledger.accept(parse(frames), 0.0).embed
    desk.ledger.unusable(stack, 0, Rule.NOT_EMBEDDED, "not finite")
    assert (stack.rejected_index, stack.pending, stack.missing_index) == ([0], set(), [])
    desk.send(frames)
    assert indices(stack) == [0]


def test_final_state_waits_for_pending_slices(desk, sender):
    stack = desk.ledger.accept(parse(sender.slice("s", 0)), 0.0).embed
    desk.send(sender.end("s", 1))
    assert stack.state == "open"
    take_in(desk.ledger, stack, EmbeddedSlice(0, 0.0, np.zeros(4, np.float32)), recurrent)
    assert stack.state == "complete"


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["start", "slice", "end", "lose", "damage", "repeat", "heartbeat"]), st.integers(0, 3)
    ),
    max_size=40,
)


@given(EVENTS)
def test_all_that_was_sent_is_accounted_for(events):
    """Sent = accepted + lost + refused, at every moment that ends with a heartbeat."""
    desk, sender = Desk(), Sender()
    n_accepted = n_refused = 0
    last = None
    for kind, number in events:
        if kind == "lose":
            sender.lose()
            continue
        if kind == "heartbeat":
            desk.send(sender.heartbeat())
            continue
        if kind == "damage":
            refuse(desk, sender.slice(f"s{number}", number, crc32=1))
            n_refused += 1
            continue
        if kind == "repeat":
            if last is not None:
                try:
                    desk.send(last)
                except Rejection:
                    pass
            continue
        last = {
            "start": lambda n: sender.start(f"s{n}"),
            "slice": lambda n: sender.slice(f"s{n % 2}", n),
            "end": lambda n: sender.end(f"s{n % 2}", n),
        }[kind](number)
        try:
            desk.send(last)
            n_accepted += 1
        except Rejection:
            n_refused += 1
    desk.send(sender.heartbeat())
    assert sender.next_number == n_accepted + n_refused + desk.ledger.n_lost("m1")


def test_ended_stack_reports_what_still_comes_for_it(desk, sender):
    desk.send(sender.start("s"))
    stack = desk.stack
    desk.send(sender.slice("s", 0))
    desk.send(sender.end("s", 1))
    with pytest.raises(Rejection) as caught:
        desk.send(sender.slice("s", 1))
    assert desk.ledger.reports(caught.value) is stack
    assert (stack.state, stack.n_rejected, stack.rejected_index) == ("complete", 1, [1])
    assert refuse(desk, sender.slice("s", 2, crc32=1)) is stack
    assert stack.rejected_index == [1, 2]
    desk.send(sender.start("t"))
    with pytest.raises(Rejection) as caught:
        desk.send(sender.slice("s", 3))
    assert desk.ledger.reports(caught.value) is None


def test_refusals_do_not_stand_in_for_missing_slices(desk, sender):
    """Three are planned, one is refused and comes again, the last is lost before another stack begins."""
    desk.send(sender.start("s", 3))
    stack = desk.stack
    refuse(desk, sender.slice("s", 0, crc32=1))
    desk.send(sender.slice("s", 0))
    desk.send(sender.slice("s", 1))
    sender.lose()
    desk.send(sender.start("t"))
    assert stack.state == "incomplete"


def test_loss_of_an_older_run_is_not_forgotten(desk):
    old, new = Sender(run_id="a"), Sender(run_id="b")
    desk.send(old.start("s"))
    old.lose(2)
    desk.send(old.slice("s", 0))
    desk.send(new.start("t"))
    assert (desk.ledger.n_lost("m1", "a"), desk.ledger.n_lost("m1", "b")) == (2, 0)
