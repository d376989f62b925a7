"""When a played stack's slices are sent, on a clock that stands still but for what waits."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from rcm_daemon.core.controller import StackPlan
from rcm_daemon.core.records import Slice
from rcm_daemon.simulator import player

PLAN = StackPlan("s", (0.0, 3.0, 6.0, 9.0), (4, 6), "uint8", 0, 0.5)


class Clock:
    now_s = 100.0

    def pass_by(self, duration_s: float) -> None:
        self.now_s += duration_s


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    stopped = SimpleNamespace(monotonic=lambda: clock.now_s, time_ns=lambda: 0)
    monkeypatch.setattr(player, "time", stopped)
    waiting = SimpleNamespace(Event=lambda: SimpleNamespace(wait=clock.pass_by))
    monkeypatch.setattr(player, "threading", waiting)
    return clock


@pytest.mark.parametrize(("answer_s", "gap_s"), [(0.0, 0.25), (0.125, 0.25), (1.5, 1.5)])
def test_one_that_follows_advice_keeps_to_its_rate_and_no_slice_catches_up(clock, answer_s, gap_s):
    sent_s = []

    def send(message):
        if isinstance(message, Slice):
            sent_s.append(clock.now_s)

    def advised(_):
        clock.pass_by(answer_s)
        return "continue", 0.0

    image = np.zeros((4, 6), np.uint8)
    n_sent = player.Player("m1", "run", send).follow(PLAN, lambda *_: image, advised, fps=4.0)
    assert n_sent == 4
    assert sent_s == [100.0 + gap_s * index for index in range(4)]
