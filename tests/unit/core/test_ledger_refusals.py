"""Refused and unusable messages are counted once, and all that was sent is accounted for."""

from __future__ import annotations

import numpy as np
import pytest
from desk import Desk, indices, recurrent
from hypothesis import given
from hypothesis import strategies as st
from sender import Sender, picture

from rcm_daemon.core.pipeline import Estimation, take_in
from rcm_daemon.core.rejection import Rejection, Rule
from rcm_daemon.core.stack import EmbeddedSlice
from rcm_daemon.core.wire import parse


@pytest.fixture
def desk():
    return Desk()


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


@pytest.mark.hazard("H22")
@pytest.mark.timeout(600)
def test_ten_thousand_stacks_of_one_instrument_are_one_open_at_a_time_and_none_goes_without_its_end():
    desk, sender = Desk(), Sender()
    ended = []
    for i in range(10_000):
        outcome = desk.send(sender.slice(f"s{i}", 0, picture(0, (1, 1))))
        ended += [stack.stack_id for stack in outcome.changed if stack.ended != "open"]
        assert len(desk.ledger.open_stacks()) == 1
    assert ended == [f"s{i}" for i in range(9_999)]


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
    take_in(desk.ledger, stack, [EmbeddedSlice(0, 0.0, np.zeros(4, np.float32))], recurrent, Estimation())
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
