"""What the desk gives its worker next, and what becomes of slices whose worker fails."""

from __future__ import annotations

import numpy as np
import pytest
from fake_supervisor import EPOCH_S, FakeSupervisor, job, stack_named

from rcm_daemon.core.records import Boundary, StrataEstimate
from rcm_daemon.core.rejection import Rule
from rcm_daemon.inference import COALESCE_S, Desk, Embedded, Labelled, NotOpened, Unusable


@pytest.fixture
def supervisor():
    return FakeSupervisor()


@pytest.fixture
def desk(supervisor):
    return Desk(supervisor)


def take_over(outcomes):
    """Do what the service does with labels; epidermis-DEJ is said to lie half-way down."""
    for outcome in outcomes:
        if isinstance(outcome, Labelled):
            outcome.stack.partial = outcome.partial
            outcome.stack.estimate = estimate_of(outcome.partial)
    return outcomes


def estimate_of(partial):
    n = len(partial)
    first = Boundary("inside", um=float(partial.z_um[-1]) / 2)
    none = np.zeros((n, 3), np.float32)
    return StrataEstimate(np.zeros(n, int), none, none, np.zeros(n, bool), (first, Boundary()))


def advance(desk, now_s=EPOCH_S):
    """Advance as the service does: again, once what came has been acted on; returns all outcomes."""
    found = []
    while outcomes := desk.advance(now_s):
        found += take_over(outcomes)
    return found


def run(desk, supervisor, now_s=EPOCH_S, limit=100):
    """Answer every request until there is none; returns the kinds of requests in order."""
    kinds = []
    advance(desk, now_s)
    while supervisor.in_hand and len(kinds) < limit:
        kinds.append(supervisor.answer())
        advance(desk, now_s)
    return kinds


def test_a_lone_slice_is_embedded_and_labelled_in_one_request(desk, supervisor):
    stack = stack_named("a")
    desk.embed(job(stack, 3))
    assert desk.advance(EPOCH_S) == []
    assert desk.n_waiting == 1
    assert supervisor.answer() == "both"
    embedded, labelled = desk.advance(EPOCH_S)
    assert isinstance(embedded, Embedded)
    assert embedded.new.index == 3
    assert isinstance(labelled, Labelled)
    assert [s.index for s in labelled.partial.slices] == [3]
    assert labelled.given.probabilities.shape == (1, 3)
    assert desk.n_waiting == 0


@pytest.mark.hazard("H39")
def test_reruns_coalesce_while_slices_of_the_stack_wait_and_slices_never_do(desk, supervisor):
    stack = stack_named("a")
    for index in range(20):
        desk.embed(job(stack, index))
    assert run(desk, supervisor) == ["embed"] * 20 + ["label"]
    assert [s.index for s in stack.partial.slices] == list(range(20))


@pytest.mark.hazard("H39")
def test_under_lasting_load_a_stack_is_still_labelled_now_and_then(desk, supervisor):
    stack = stack_named("a")
    kinds, now_s = [], EPOCH_S
    for index in range(40):
        desk.embed(job(stack, index))
    advance(desk, now_s)
    while supervisor.in_hand:
        now_s += COALESCE_S / 10
        kinds.append(supervisor.answer())
        advance(desk, now_s)
    assert kinds.count("embed") == 40
    assert 3 <= kinds.count("label") <= 6


@pytest.mark.hazard("H20")
def test_a_stack_is_not_held_up_by_slices_of_others(desk, supervisor):
    one, two = stack_named("a"), stack_named("b")
    desk.embed(job(one, 0))
    desk.embed(job(two, 0))
    assert run(desk, supervisor) == ["both", "both"]


def test_nothing_is_due_while_there_is_no_worker_to_give_it_to(desk, supervisor):
    stack = stack_named("a")
    desk.embed(job(stack, 0))
    desk.embed(job(stack, 1))
    desk.advance(EPOCH_S)
    supervisor.answer()
    desk.advance(EPOCH_S)  # one is embedded and not labelled, the other in hand
    supervisor.die()
    desk.advance(EPOCH_S)
    assert desk.next_due_s is None
    supervisor.come_back()
    assert desk.next_due_s is not None


@pytest.mark.hazard("H49")
def test_what_a_dead_worker_had_in_hand_is_given_to_the_next_first(desk, supervisor):
    stack = stack_named("a")
    for index in range(3):
        desk.embed(job(stack, index))
    desk.advance(EPOCH_S)
    supervisor.die()
    assert desk.advance(EPOCH_S) == []
    assert desk.n_waiting == 3
    supervisor.come_back()
    run(desk, supervisor)
    assert [s.index for s in stack.partial.slices] == [0, 1, 2]
    assert supervisor.embedded_indices == [0, 0, 1, 2]


@pytest.mark.hazard("H63")
def test_a_slice_that_ends_its_worker_twice_is_quarantined_and_the_stack_goes_on(desk, supervisor):
    stack = stack_named("a")
    desk.embed(job(stack, 0))
    desk.embed(job(stack, 1))
    for last in (False, True):
        desk.advance(EPOCH_S)
        supervisor.die()
        outcomes = desk.advance(EPOCH_S)
        supervisor.come_back()
        assert bool(outcomes) is last
    (refused,) = outcomes
    assert isinstance(refused, Unusable)
    assert (refused.index, refused.rule) == (0, Rule.QUARANTINED)
    assert "2 times over this slice" in refused.detail
    run(desk, supervisor)
    assert [s.index for s in stack.partial.slices] == [1]


@pytest.mark.hazard("H63")
def test_a_slice_that_cannot_be_labelled_is_found_among_several(desk, supervisor):
    """The rerun over three new slices fails; one by one, the second is refused and the others stay."""
    stack = stack_named("a")
    for index in range(3):
        desk.embed(job(stack, index))
    supervisor.unlabelled_index = 1
    refused = []
    desk.advance(EPOCH_S)
    while supervisor.in_hand:
        supervisor.answer()
        refused += [o for o in advance(desk) if isinstance(o, Unusable)]
    assert [(r.index, r.rule) for r in refused] == [(1, Rule.NOT_LABELLED)]
    assert [s.index for s in stack.partial.slices] == [0, 2]
    assert desk.n_waiting == 0


@pytest.mark.hazard("H63")
def test_slices_labelled_one_by_one_are_all_kept(desk, supervisor):
    """Each rerun rests on the partial stack that the one before it gave, though they follow at once."""
    stack = stack_named("a")
    for index in range(4):
        desk.embed(job(stack, index))
    supervisor.unlabelled_index = 0
    run(desk, supervisor)
    assert [s.index for s in stack.partial.slices] == [1, 2, 3]


@pytest.mark.hazard("H63")
def test_a_lone_slice_that_cannot_be_labelled_is_refused_and_the_stack_stays(desk, supervisor):
    stack = stack_named("a")
    desk.embed(job(stack, 0))
    run(desk, supervisor)
    supervisor.unlabelled_index = 1
    desk.embed(job(stack, 1))
    advance(desk)
    supervisor.answer()
    embedded, refused = advance(desk)
    assert isinstance(embedded, Embedded)
    assert (refused.index, refused.rule) == (1, Rule.NOT_LABELLED)
    assert [s.index for s in stack.partial.slices] == [0]
    assert desk.n_waiting == 0


def test_a_slice_that_comes_while_its_stack_is_labelled_rests_on_that(desk, supervisor):
    stack = stack_named("a")
    desk.embed(job(stack, 0))
    advance(desk)
    desk.embed(job(stack, 1))
    supervisor.answer()
    kinds = run(desk, supervisor)
    assert kinds[-1] in ("both", "label")
    assert [s.index for s in supervisor.stacks[-1].slices] == [0, 1]
    assert [s.index for s in stack.partial.slices] == [0, 1]


@pytest.mark.hazard("H63")
def test_a_slice_whose_labelling_ends_the_worker_twice_is_quarantined(desk, supervisor):
    stack = stack_named("a")
    desk.embed(job(stack, 0))
    desk.embed(job(stack, 1))
    advance(desk)
    for _ in range(2):  # so that both wait to be labelled
        assert supervisor.answer() == "embed"
        advance(desk)
    refused = []
    for _ in range(3):  # over both together, then twice over the first
        supervisor.die()
        refused += advance(desk)
        supervisor.come_back()
        refused += advance(desk)
    assert [(r.index, r.rule) for r in refused] == [(0, Rule.QUARANTINED)]
    assert run(desk, supervisor) == ["label"]
    assert [s.index for s in stack.partial.slices] == [1]
    assert desk.n_waiting == 0


def test_a_death_while_idle_charges_nobody(desk, supervisor):
    stack = stack_named("a")
    for _ in range(3):
        supervisor.die()
        assert desk.advance(EPOCH_S) == []
        supervisor.come_back()
    desk.embed(job(stack, 0))
    assert run(desk, supervisor) == ["both"]
    assert desk.n_deaths == 3


@pytest.mark.hazard("H25")
def test_a_slice_that_fails_to_embed_is_refused_with_the_reason(desk, supervisor):
    desk.embed(job(stack_named("a"), 0))
    desk.advance(EPOCH_S)
    supervisor.fail("an embedding must be finite, got 2 of 4 values that are not for slice 0 of 'a'")
    (refused,) = desk.advance(EPOCH_S)
    assert (refused.rule, refused.index) == (Rule.NOT_EMBEDDED, 0)
    assert refused.detail.startswith("an embedding must be finite")


def test_a_worker_that_never_opened_its_bundle_is_told_apart(desk, supervisor):
    supervisor.bundle = None
    supervisor.die(refused="the bundle is bad")
    (not_opened,) = desk.advance(EPOCH_S)
    assert isinstance(not_opened, NotOpened)
    assert not_opened.refused == "the bundle is bad"


def test_labels_rest_on_exactly_what_was_sent(desk, supervisor):
    stack = stack_named("a")
    for index in (2, 0, 1):
        desk.embed(job(stack, index))
        run(desk, supervisor)
    assert [s.index for s in supervisor.stacks[-1].slices] == [0, 1, 2]
    assert np.array_equal(supervisor.stacks[-1].embeddings[:, 0], [0.0, 0.0, 2.0])  # 1 the worker fills in
    assert np.array_equal(stack.partial.embeddings[:, 0], [0.0, 1.0, 2.0])


def labelled(desk, supervisor):
    """Answer until nothing is left to do; returns what was labelled, in order."""
    found = [o for o in advance(desk) if isinstance(o, Labelled)]
    while supervisor.in_hand:
        supervisor.answer()
        found += [o for o in advance(desk) if isinstance(o, Labelled)]
    return found


def test_what_was_said_is_remembered_as_long_as_slices_come_one_below_the_other(desk, supervisor):
    stack = stack_named("a")
    supervisor.said = [99.0, 99.0]
    found = []
    for index in range(4):
        desk.embed(job(stack, index))
        found += labelled(desk, supervisor)
    assert not any("known" in fields for fields in supervisor.asked)
    assert [one.before for one in found] == [(None, None), (0.0, None), (1.5, None), (3.0, None)]


def test_what_is_not_known_to_be_said_the_worker_follows(desk, supervisor):
    stack = stack_named("a")
    supervisor.said = [7.25, None]
    for index in (0, 3):
        desk.embed(job(stack, index))
        labelled(desk, supervisor)
    desk.embed(job(stack, 2))  # above the deepest: nothing is known of what lies below it
    (between,) = labelled(desk, supervisor)
    assert supervisor.asked[-1]["known"] == (0, (None, None))
    assert supervisor.asked[-1]["z_um"] == [0.0, 6.0, 9.0]
    assert between.before == (7.25, None)
    for index in (4, 5, 6):  # three at once: all but the last two are known
        desk.embed(job(stack, index))
    last = labelled(desk, supervisor)[-1]
    assert supervisor.asked[-1]["kind"] == "label"
    assert supervisor.asked[-1]["known"] == (3, (4.5, None))
    assert supervisor.asked[-1]["z_um"] == [0.0, 6.0, 9.0, 12.0, 15.0, 18.0]
    assert last.before == (7.25, None)
