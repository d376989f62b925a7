"""Rows as the daemon writes them, small and deterministic."""

from __future__ import annotations

import numpy as np

from rcm_daemon.core.account import RejectionRow, SliceRow, StackRow
from rcm_daemon.core.stack import Acquisition, EmbeddedSlice, Received

SIZE = 64


def stack(number=1, stack_id="s", instrument="m1"):
    return Acquisition(
        instrument,
        stack_id,
        1,
        "run",
        0,
        0,
        (24, 32),
        "uint8",
        0.5,
        0.0,
        number=number,
        first_run_id="run",
        bundle_digest="d" * 64,
    )


def slice_row(number, index):
    embedding = np.random.default_rng([number, index]).normal(size=SIZE).astype(np.float32)
    new = EmbeddedSlice(index, 3.0 * index, embedding, 1.0, ("dark",) if index % 2 else ())
    return SliceRow(number, Received(3.0 * index, bytes([index]) * 32), new)


def rows(number=1, n_slices=5):
    return [
        StackRow.of(stack(number)),
        *(slice_row(number, index) for index in range(n_slices)),
        RejectionRow(number, 0, 7, "R114 crc_mismatch: no"),
    ]


def assert_same_slices(journal, number, indices):
    received, embedded, _ = journal.slices(number)
    assert sorted(received) == sorted(s.index for s in embedded)
    assert set(received) <= set(indices)
    for found in embedded:
        wanted = slice_row(number, found.index)
        assert received[found.index] == wanted.received
        assert np.array_equal(found.embedding, wanted.embedded.embedding)
        assert (found.z_um, found.weight, found.flags) == (
            wanted.embedded.z_um,
            wanted.embedded.weight,
            wanted.embedded.flags,
        )
    return sorted(received)
