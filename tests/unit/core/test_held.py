"""A depth once said is held, and follows from the slices alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from desk import Desk
from hypothesis import given
from hypothesis import strategies as st
from sender import Sender
from test_monotone import estimate, parameters

from rcm_daemon.core import pipeline
from rcm_daemon.core.estimator import HELD, NOTHING_SAID, Reading, posterior_of
from rcm_daemon.core.pipeline import (
    Estimation,
    Recurrence,
    estimate_strata,
    said_before,
    said_so_far,
    take_in,
)
from rcm_daemon.core.posterior import boundary_posterior
from rcm_daemon.core.records import BOUNDARIES
from rcm_daemon.core.stack import EmbeddedSlice, PartialStack

N_STRATA = 3
ESTIMATION = Estimation(parameters(found_probability=(0.65, 0.4), thinnest_um=5.0))
FOR_GOOD = Estimation(ESTIMATION.parameters.model_copy(update={"for_good": True}))


def recurrent(embeddings, z_um, weight):
    """Evidence of a slice that changes with every slice below it, as a bidirectional network's does."""
    below = np.cumsum(embeddings[::-1], axis=0)[::-1] - embeddings
    evidence = (embeddings + 0.4 * np.tanh(below)) * weight[:, None]
    probabilities = np.full(evidence.shape, 1 / N_STRATA, np.float32)
    return Recurrence(probabilities, evidence.astype(np.float32))


def slices_of(seed: int, n: int) -> list[EmbeddedSlice]:
    """A stack of which the boundaries are seen dimly."""
    rng = np.random.default_rng(seed)
    z_um = np.cumsum(rng.uniform(1.0, 6.0, n))
    first = rng.uniform(0, z_um[-1])
    strata = (z_um > first).astype(int) + (z_um > first + rng.uniform(10, 60))
    rows = 0.15 * np.eye(N_STRATA)[strata] + rng.normal(0, 0.15, (n, N_STRATA))
    depths = zip(z_um.tolist(), rows.astype(np.float32), strict=True)
    return [EmbeddedSlice(index, um, row) for index, (um, row) in enumerate(depths)]


def one_below_the_other(slices, estimation=ESTIMATION):
    """What is said after each slice, each time with what was said before."""
    partial, said, found = PartialStack(), None, []
    for one in slices:
        earlier, partial = partial, partial.with_slices(one)
        known = said_so_far(earlier, said, partial)
        said = estimate_strata(partial, recurrent, estimation, known=known)
        found.append(said)
    return found


def points_of(slices):
    """Depths between which a depth is held, and the median, of both boundaries."""
    partial = PartialStack(tuple(slices))
    evidence = recurrent(partial.embeddings, None, partial.weight).evidence.astype(float)
    posterior = boundary_posterior(
        partial.z_um, evidence, partial.weight.astype(float), ESTIMATION.parameters.prior
    )
    return [posterior.quantile(k, np.array([HELD[0], 0.5, HELD[1]])) for k in range(len(BOUNDARIES))]


def test_a_depth_stays_within_the_middle_fifth_and_else_moves_as_little_as_may_be() -> None:
    z_um = np.arange(0.0, 150.0, 3.0)
    evidence = 0.05 * np.eye(3)[(z_um > 60).astype(int) + (z_um > 105)]
    prior = parameters().prior
    posterior = boundary_posterior(z_um, np.float32(evidence).astype(float), np.ones(len(z_um)), prior)
    for k in range(len(BOUNDARIES)):
        low, median, high = posterior.quantile(k, np.array([0.4, 0.5, 0.6]))
        assert low + 0.5 < median < high - 0.5

        def said(before_um, k=k):
            before = (before_um, None) if k == 0 else (None, before_um)
            return estimate(z_um, evidence, before=before).boundaries[k].um

        assert said(None) == median
        for within in (low + 0.1, median - 0.3, high - 0.1):
            assert said(within) == within
        assert said(low - 20.0) == low
        assert said(high + 20.0) == high


@given(st.integers(0, 5_000), st.integers(2, 30))
def test_what_is_said_is_held_between_slices_and_never_impossible(seed, n) -> None:
    slices = slices_of(seed, n)
    before = NOTHING_SAID
    for n_seen, said in enumerate(one_below_the_other(slices), start=1):
        assert set(np.diff(said.labels).tolist()) <= {0, 1}  # no gap here has room for a whole DEJ
        points = points_of(slices[:n_seen])
        for k, (boundary, earlier_um) in enumerate(zip(said.boundaries, before, strict=True)):
            if not boundary.found:
                continue
            low, median, high = points[k]
            wanted = median if earlier_um is None else np.clip(earlier_um, low, high)
            assert boundary.um <= wanted + 1e-9  # less deep only where the stack or the other boundary ends
            if k == 1 and wanted <= slices[n_seen - 1].z_um:
                assert boundary.um == pytest.approx(wanted)
            assert boundary.low_um <= boundary.um <= boundary.high_um
        before = said.said


@given(st.integers(0, 5_000), st.integers(2, 30))
def test_what_is_kept_for_good_makes_room_for_the_other_boundary_alone(seed, n) -> None:
    slices = slices_of(seed, n)
    before = NOTHING_SAID
    for said in one_below_the_other(slices, FOR_GOOD):
        assert set(np.diff(said.labels).tolist()) <= {0, 1}
        first, second = said.boundaries
        if before[1] is not None:
            assert second.um == before[1]
        if before[0] is not None and second.status == "not_reached":
            assert first.um == before[0]
        if before[0] is not None and second.found:
            assert first.status == "above_start" or 0 < first.um <= before[0]
        for boundary in said.boundaries:
            assert not boundary.found or boundary.low_um <= boundary.um <= boundary.high_um
        before = said.said


def test_what_is_kept_for_good_hardly_ever_changes_and_what_is_held_does() -> None:
    changes = []
    for estimation in (FOR_GOOD, ESTIMATION):
        depths = [
            [one.said[0] for one in one_below_the_other(slices_of(seed, 24), estimation)]
            for seed in range(20)
        ]
        pairs = [pair for said in depths for pair in itertools.pairwise(said) if pair[0] is not None]
        changes.append(np.mean([a != b for a, b in pairs]))
    assert changes[0] < 0.02 < 0.1 < changes[1]


def test_a_boundary_kept_for_good_follows_the_other_one() -> None:
    """A DEJ-dermis above the first slice takes epidermis-DEJ along, one kept inside holds it inside."""
    z_um = np.arange(0.0, 60.0, 3.0)
    dermis, epidermis = np.eye(3)[np.full(20, 2)], np.eye(3)[np.zeros(20, int)]
    said = estimate(z_um, 0.165 * dermis, before=(30.0, None), for_good=True)
    assert [one.status for one in said.boundaries] == ["above_start"] * 2
    said = estimate(z_um, 0.3 * epidermis, before=(None, 30.0), for_good=True)
    assert [one.status for one in said.boundaries] == ["inside"] * 2
    said = estimate(z_um, 0.3 * epidermis, before=(20.0, 30.0))
    assert [one.status for one in said.boundaries] == ["not_reached"] * 2


@given(st.integers(0, 5_000), st.integers(2, 24), st.sampled_from([ESTIMATION, FOR_GOOD]), st.data())
def test_order_and_number_of_slices_at_once_change_nothing(seed, n, estimation, data) -> None:
    slices = slices_of(seed, n)
    expected = one_below_the_other(slices, estimation)
    order = data.draw(st.permutations(range(n)))
    arrived, said, partial = 0, None, PartialStack()
    while arrived < n:
        many = data.draw(st.integers(1, n - arrived))
        earlier, partial = partial, partial.with_slices(*(slices[i] for i in order[arrived : arrived + many]))
        arrived += many
        known = said_so_far(earlier, said, partial)
        said = estimate_strata(partial, recurrent, estimation, known=known)
        alone = one_below_the_other(partial.slices, estimation)[-1]
        assert said.boundaries == alone.boundaries
        assert said.labels.tolist() == alone.labels.tolist()
    assert said.boundaries == expected[-1].boundaries


def test_taking_slices_in_holds_as_well_at_once_as_one_by_one() -> None:
    differs = 0
    for seed in range(12):
        slices = slices_of(seed, 24)
        finals = []
        for at_once in (1, 5, 24):
            desk = Desk()
            stack = desk.send(Sender().start("a", 24, (4, 4))).changed[-1]
            for begin in range(0, 24, at_once):
                take_in(desk.ledger, stack, slices[begin : begin + at_once], recurrent, ESTIMATION)
            finals.append(stack.estimate)
        assert finals[0].boundaries == finals[1].boundaries == finals[2].boundaries
        partial = PartialStack(tuple(slices))
        given_ = recurrent(partial.embeddings, None, partial.weight)
        differs += finals[0].said != ESTIMATION.estimate(partial, given_).said
    assert differs >= 3  # else there would be nothing to hold


def test_what_is_known_is_of_the_same_beginning() -> None:
    slices = slices_of(1, 6)
    said = one_below_the_other(slices[:4])[-1]
    earlier = PartialStack(tuple(slices[:4]))
    assert said_so_far(earlier, said, PartialStack(tuple(slices))) == (4, said.said)
    assert said_so_far(earlier, None, PartialStack(tuple(slices))) == (0, NOTHING_SAID)
    assert said_so_far(earlier, said, earlier) == (0, NOTHING_SAID)
    above = EmbeddedSlice(9, slices[1].z_um + 0.5, slices[1].embedding)
    assert said_so_far(earlier, said, earlier.with_slices(above)) == (0, NOTHING_SAID)
    assert said_so_far(earlier, said, PartialStack(tuple(slices[1:]))) == (0, NOTHING_SAID)


def test_long_stacks_are_not_followed_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    slices = PartialStack(tuple(slices_of(2, 12)))
    monkeypatch.setattr(pipeline, "MOST_FOLLOWED", 11)
    runs = []

    def counted(*given_):
        runs.append(len(given_[0]))
        return recurrent(*given_)

    assert said_before(slices, counted, ESTIMATION, (5, (7.0, None))) == (7.0, None)
    assert runs == []
    monkeypatch.setattr(pipeline, "MOST_FOLLOWED", 12)
    said = said_before(slices, counted, ESTIMATION, (5, (7.0, None)))
    assert runs == list(range(11, 5, -1))[: len(runs)]  # upwards, as far as anything is found
    beginning = recurrent(slices.embeddings[:6], None, slices.weight[:6]).evidence
    posterior = posterior_of(slices.z_um[:6], slices.weight[:6], beginning, ESTIMATION.parameters)
    reading = Reading.of(posterior, ESTIMATION.parameters)
    first = reading.said(ESTIMATION.parameters.thinnest_um, (7.0, None))
    assert said == said_before(slices, recurrent, ESTIMATION, (6, first))
    assert said_before(slices, counted, Estimation()) == NOTHING_SAID  # the paper's reading holds nothing


def test_a_stack_is_followed_up_no_farther_than_anything_was_found() -> None:
    above, below = np.float32(0.3 * np.eye(N_STRATA)[[0, 1]])
    slices = [EmbeddedSlice(n, 6.0 * n, above if n < 12 else below) for n in range(20)]
    runs = []

    def counted(*given_):
        runs.append(len(given_[0]))
        return recurrent(*given_)

    assert said_before(PartialStack(tuple(slices[:12])), counted, ESTIMATION) == NOTHING_SAID
    assert runs == [11]
    runs.clear()
    assert said_before(PartialStack(tuple(slices)), counted, ESTIMATION)[0] is not None
    assert runs[0] == 19
    assert 11 <= runs[-1] <= 15
