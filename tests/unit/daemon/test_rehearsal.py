"""What the daemon rehearses: the last slice whose estimate is known, as long as its stack is open."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pytest
from fake_supervisor import stack_named

from rcm_daemon.core.controller import Controller, StackPlan
from rcm_daemon.core.message import Source
from rcm_daemon.core.pipeline import Estimation, Recurrence
from rcm_daemon.core.rhythm import N_INTERVALS
from rcm_daemon.core.stack import EmbeddedSlice
from rcm_daemon.core.wire import encode
from rcm_daemon.inference import Labelled, NewSlice
from rcm_daemon.rehearsal import Rehearsal


class Bundles:
    """Of one bundle, which reads strata as the paper does."""

    def estimation(self, _digest: str) -> Estimation:
        return Estimation()

    def source(self, digest: str) -> Source:
        return Source("0", "tiny", digest, "cpu")


def frames_of(stack_id: str, index: int) -> list[SimpleNamespace]:
    plan = StackPlan(stack_id, tuple(range(8)), (4, 4), "uint8", 0, 0.5)
    message = Controller("m1", "r1").slice(plan, index, np.full((4, 4), index, np.uint8), 0)
    return [SimpleNamespace(buffer=memoryview(frame)) for frame in encode(message)]


def labelled(stack, n: int = 1) -> Labelled:
    new = [EmbeddedSlice(i, 3.0 * i, np.full(8, i, np.float32)) for i in range(n)]
    partial = stack.partial.with_slices(*new)
    given = Recurrence(np.full((n, 3), 1 / 3, np.float32))
    return Labelled(stack, partial, given, (NewSlice(new[-1]),))


@pytest.fixture
def rehearsal():
    return Rehearsal(Bundles(), 0.4)


def come_regularly(rehearsal, stack_id: str, now_s: float = 0.0) -> float:
    """Let slices come at 10 a second, the last one just now; returns when."""
    for index in range(N_INTERVALS + 1):
        rehearsal.came(frames_of(stack_id, index), now_s + 0.1 * index)
    return now_s + 0.1 * N_INTERVALS


@pytest.fixture
def soon(monkeypatch):
    """The clock stands where a pass is due."""

    def set_clock(now_s: float) -> None:
        monkeypatch.setattr("rcm_daemon.rehearsal.time.monotonic", lambda: now_s + 1e-6)

    return set_clock


def test_a_pass_is_made_when_it_is_due_and_changes_nothing(rehearsal, soon):
    stack = stack_named("a")
    last_s = come_regularly(rehearsal, "a")
    assert rehearsal.wait_s(last_s) is None  # nothing has been labelled yet
    rehearsal.labelled(labelled(stack))
    before = repr(stack)
    assert rehearsal.wait_s(last_s) > 0
    soon(last_s)
    rehearsal.make_pass()
    assert rehearsal.n_passes == 0
    soon(last_s + rehearsal.wait_s(last_s))
    rehearsal.make_pass()
    assert rehearsal.n_passes == 1
    assert repr(stack) == before


def test_a_stack_that_has_ended_is_not_rehearsed(rehearsal):
    stack = stack_named("a")
    last_s = come_regularly(rehearsal, "a")
    rehearsal.labelled(labelled(stack))
    stack.ended = "complete"
    assert rehearsal.wait_s(last_s) is None


def test_a_slice_that_displaces_an_open_stack_is_rehearsed_once_it_is_labelled(rehearsal, soon, caplog):
    first, second = stack_named("a"), stack_named("b")
    last_s = come_regularly(rehearsal, "a")
    rehearsal.labelled(labelled(first))
    rehearsal.came(frames_of("b", 0), last_s + 0.1)
    first.ended = "abandoned"
    assert rehearsal.wait_s(last_s + 0.1) is None
    rehearsal.labelled(labelled(second))
    soon(last_s + 0.1 + rehearsal.wait_s(last_s + 0.1))
    rehearsal.make_pass()
    assert rehearsal.n_passes == 1
    assert not caplog.records


def test_a_fault_is_logged_once_and_ends_the_rehearsals_of_its_stack_only(rehearsal, soon, caplog):
    last_s = come_regularly(rehearsal, "a")
    wrong = labelled(stack_named("a"))
    rehearsal.labelled(Labelled(wrong.stack, wrong.partial, Recurrence(np.zeros((1, 3))), ()))
    soon(last_s + rehearsal.wait_s(last_s))
    with caplog.at_level(logging.ERROR):
        rehearsal.make_pass()
    assert "a rehearsal failed" in caplog.text
    assert rehearsal.wait_s(last_s) is None
    rehearsal.labelled(labelled(wrong.stack))
    assert rehearsal.wait_s(last_s) is None
    rehearsal.labelled(labelled(stack_named("b")))
    assert rehearsal.wait_s(last_s) is not None


def test_without_a_share_nothing_is_kept():
    rehearsal = Rehearsal(Bundles(), 0.0)
    last_s = come_regularly(rehearsal, "a")
    rehearsal.labelled(labelled(stack_named("a")))
    assert rehearsal.wait_s(last_s) is None
