"""Labels, boundaries and the message made of them, on hand-worked stacks."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sender import Sender

from rcm_daemon.bundle.picture import quality_flags
from rcm_daemon.core.boundaries import boundaries_from_labels
from rcm_daemon.core.ledger import Ledger
from rcm_daemon.core.message import Latency, Source, StrataMessage, build_message
from rcm_daemon.core.pipeline import Estimation, Recurrence, estimate_strata, take_in
from rcm_daemon.core.quality import weight_of
from rcm_daemon.core.stack import EmbeddedSlice, PartialStack
from rcm_daemon.core.strata import paper_labels
from rcm_daemon.core.wire import parse

SOURCE = Source("0", "tiny", "d" * 64, "cpu")


def one_hot(labels):
    return np.eye(3, dtype=np.float32)[list(labels)]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ([0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2]),
        ([0, 0, 2, 0, 1, 1], [0, 0, 0, 1, 1, 1]),  # the median takes the outlier
        ([0, 1, 1, 0, 0, 1], [0, 1, 1, 1, 1, 1]),  # the maximum forbids going back
        ([2, 0, 0, 0], [2, 2, 2, 2]),  # an end has no neighbour to outvote it
        ([0, 2], [0, 2]),
        ([1], [1]),
        ([], []),
    ],
)
def test_paper_labels(raw, expected):
    assert paper_labels(one_hot(raw).reshape(-1, 3)).tolist() == expected


@given(st.lists(st.integers(0, 2), min_size=1, max_size=60))
def test_paper_labels_never_fall(raw):
    assert (np.diff(paper_labels(one_hot(raw))) >= 0).all()


@pytest.mark.parametrize(
    ("labels", "first", "second"),
    [
        ([0, 0, 1, 2], ("inside", 4.5), ("inside", 7.5)),
        ([0, 0, 0, 0], ("not_reached", 0.0), ("not_reached", 0.0)),
        ([1, 1, 2, 2], ("above_start", 0.0), ("inside", 4.5)),
        ([2, 2, 2, 2], ("above_start", 0.0), ("above_start", 0.0)),
        ([0, 2, 2, 2], ("inside", 1.5), ("inside", 1.5)),
        ([0, 1, 1, 1], ("inside", 1.5), ("not_reached", 0.0)),
    ],
)
def test_boundaries_lie_between_slices(labels, first, second):
    found = boundaries_from_labels(np.array(labels), np.array([0.0, 3.0, 6.0, 9.0]))
    assert [(b.status, b.um) for b in found] == [first, second]
    assert [b.found for b in found] == [b.status == "inside" for b in found]


@pytest.mark.hazard("H23")
@pytest.mark.hazard("H24")
def test_dark_and_saturated_slices_are_flagged():
    ordinary = np.random.default_rng(0).integers(20, 200, (100, 100), dtype=np.uint8)
    assert quality_flags(ordinary) == ()
    assert quality_flags(np.zeros((100, 100), np.uint8)) == ("dark",)
    assert quality_flags(np.full((100, 100), 255, np.uint8)) == ("saturated",)
    assert quality_flags(ordinary // 20) == ("dark",)
    assert weight_of(()) == weight_of(("cropped",)) == 1.0
    assert weight_of(("dark", "saturated")) == 0.0 < weight_of(("saturated",)) < 1.0


@pytest.mark.hazard("H23")
def test_a_dark_slice_has_no_confident_label_and_takes_its_neighbours():
    def confident(embeddings, z_um, weight):
        rows = np.full((len(z_um), 3), 0.01, np.float32)
        rows[np.arange(len(z_um)), [0, 0, 1, 0, 1, 2, 2, 0]] = 0.98  # 3 and 7 are black and called epidermis
        return Recurrence(rows)

    dark = {3, 7}
    stack = PartialStack(
        tuple(
            EmbeddedSlice(i, 3.0 * i, np.zeros(2, np.float32), flags=("dark",) if i in dark else ())
            for i in range(8)
        )
    )
    estimate = estimate_strata(stack, confident, Estimation())
    assert estimate.labels.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert {i for i, row in enumerate(estimate.probabilities) if row.max() < 0.5} == dark
    assert estimate.probabilities.dtype == np.float32


def test_partial_stack_is_ordered_by_depth_then_index():
    stack = PartialStack()
    for index, z_um in [(0, 5.0), (3, 1.0), (1, 5.0), (2, -2.0)]:
        stack = stack.with_slices(EmbeddedSlice(index, z_um, np.full(2, index, np.float32)))
    assert [s.index for s in stack.slices] == [2, 3, 0, 1]
    assert stack.z_um.tolist() == [-2.0, 1.0, 5.0, 5.0]
    assert stack.embeddings[:, 0].tolist() == [2, 3, 0, 1]


def stack_of(n, stack_id="s.1 ~%"):
    ledger, sender = Ledger(), Sender()
    stack = ledger.accept(parse(sender.start(stack_id, n)), 0.0).changed[0]
    for i in range(n):
        ledger.accept(parse(sender.slice(stack_id, i)), 0.0)
        new = EmbeddedSlice(i, 3.0 * i, np.zeros(4, np.float32), flags=("dark",) if i == 1 else ())
        take_in(
            ledger,
            stack,
            [new],
            lambda e, z, w: Recurrence(one_hot(np.digitize(z, [4.0, 10.0]))),
            Estimation(),
        )
    return stack


@pytest.mark.parametrize(("n_strange", "is_strange"), [(0, False), (3, False), (4, True), (6, True)])
def test_a_stack_is_out_of_domain_when_most_of_its_slices_are(n_strange, is_strange):
    stack = stack_of(6)
    stack.partial = PartialStack(
        tuple(
            replace(s, flags=("out_of_domain",) if i < n_strange else ())
            for i, s in enumerate(stack.partial.slices)
        )
    )
    fields = json.loads(message_of(stack).to_json())
    assert ("out_of_domain" in fields["stack_flags"].split(",")) is is_strange
    assert fields["flags"].count("out_of_domain") == n_strange


def message_of(stack):
    return build_message(stack, SOURCE, Latency(total_ms=1.23456), seq=7, time_ns=5_000_000_001, n_lost=2)


def test_message_has_every_key_even_of_an_empty_stack():
    empty = json.loads(message_of(stack_of(0)).to_json())
    full = json.loads(message_of(stack_of(6)).to_json())
    assert list(empty) == list(full)
    assert None not in full.values()
    assert (empty["n_slices"], empty["label"], empty["epidermis_dej_status"]) == (0, [], "not_reached")


def test_message_of_a_known_stack():
    fields = json.loads(message_of(stack_of(6)).to_json())
    assert fields["label"] == ["epidermis", "epidermis", "dej", "dej", "dermis", "dermis"]
    assert (fields["epidermis_dej_um"], fields["dej_dermis_um"]) == (4.5, 10.5)
    assert (fields["epidermis_dej_found"], fields["dej_dermis_found"]) == (True, True)
    assert fields["flags"] == ["", "dark", "", "", "", ""]
    assert fields["probability"][0] == [1.0, 0.0, 0.0]
    assert (fields["time_s"], fields["time_ns"], fields["n_lost"], fields["total_ms"]) == (5, 1, 2, 1.235)
    for key in ("z_um", "label", "probability", "posterior", "settled", "flags"):
        assert len(fields[key]) == len(fields["index"]) == fields["n_slices"]


def test_topic_escapes_all_but_the_safe_characters():
    assert message_of(stack_of(0)).topic == b"strata.m1.s%2E1%20%7E%25"


def test_not_finite_numbers_cannot_be_published():
    stack = stack_of(1)
    with pytest.raises(ValueError, match="finite"):
        build_message(stack, SOURCE, Latency(total_ms=math.nan), seq=0, time_ns=0, n_lost=0)


def test_every_field_is_described_by_the_schema():
    schema = StrataMessage.model_json_schema(by_alias=True)
    assert set(json.loads(message_of(stack_of(2)).to_json())) == set(schema["properties"])


@given(st.integers(1, 12), st.integers(0, 1000))
def test_estimate_of_every_prefix_equals_that_of_the_prefix_alone(n, seed):
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(n, 3)).astype(np.float32)

    def recurrent(values, z_um, weight):
        total = np.cumsum(values, axis=0)
        return Recurrence((np.exp(total) / np.exp(total).sum(axis=1, keepdims=True)).astype(np.float32))

    stack = PartialStack()
    for i in rng.permutation(n):
        stack = stack.with_slices(EmbeddedSlice(int(i), float(i), embeddings[i]))
        seen = sorted(s.index for s in stack.slices)
        alone = recurrent(embeddings[seen], None, None).probabilities
        assert np.array_equal(estimate_strata(stack, recurrent, Estimation()).probabilities, alone)
