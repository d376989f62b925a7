"""While a worker waits: what it runs for nothing, and that a request never waits for more than one run."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from rcm_daemon.bundle import prompter
from rcm_daemon.bundle.prompter import N_WHOLE_PASSES, Prompter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Score:
    """A rhythm that has so many passes made at once, and notes arrivals."""

    def __init__(self, n_passes: int = 0) -> None:
        self.n_left = 0
        self.n_arrived = 0
        self._n_passes = n_passes

    def arrived(self, _now_s: float) -> None:
        self.n_arrived += 1
        self.n_left = self._n_passes

    def wait_s(self, _now_s: float) -> float | None:
        return 0.0 if self.n_left else None

    def rehearsed(self, begun_s: float, now_s: float) -> None:
        assert begun_s <= now_s
        self.n_left -= 1


class Stage:
    """Both ends of a channel, a prompter on one, and what it has had run; the n-th run brings a request."""

    def __init__(self, ends: tuple[socket.socket, socket.socket], score: Score, *, keeps_warm: bool) -> None:
        self.ours, theirs = ends
        self.ran: list[str | tuple[bytes, bytes]] = []
        self.comes_after = -1
        self.prompter = Prompter(theirs, score, self._go_through, self._run_cnn, keeps_warm=keeps_warm)

    def _go_through(self, request: bytes, more) -> None:
        self._note((request, more()))

    def _run_cnn(self) -> None:
        self._note("cnn")

    def _note(self, what) -> None:
        self.ran.append(what)
        if len(self.ran) == self.comes_after:
            self.ours.send(b"next")


@contextmanager
def later(what: Callable[[], object]) -> Iterator[None]:
    """Do something after many times as long as a GPU is left alone here."""
    timer = threading.Timer(0.05, what)
    timer.start()
    yield
    timer.join()


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def test_a_rehearsal_runs_the_cnn_and_then_goes_through_the_whole_request_again(ends):
    stage = Stage(ends, Score(n_passes=5), keeps_warm=False)
    stage.ours.send(b"first")
    stage.ours.send(b"its stack")
    assert stage.prompter.next_request() == b"first"
    assert stage.prompter.what_follows() == b"its stack"
    stage.comes_after = 5
    assert stage.prompter.next_request() == b"next"
    assert stage.ran == ["cnn"] * (5 - N_WHOLE_PASSES) + [(b"first", b"its stack")] * N_WHOLE_PASSES


def test_a_request_ends_a_rehearsal(ends):
    score = Score(n_passes=8)
    stage = Stage(ends, score, keeps_warm=False)
    stage.ours.send(b"first")
    stage.prompter.next_request()
    stage.comes_after = 2
    assert stage.prompter.next_request() == b"next"
    assert stage.ran == ["cnn", "cnn"]
    assert score.n_arrived == 2


def test_a_request_that_waits_is_taken_at_once(ends):
    stage = Stage(ends, Score(n_passes=8), keeps_warm=True)
    for name in (b"first", b"second"):
        stage.ours.send(name)
    assert [stage.prompter.next_request() for _ in range(2)] == [b"first", b"second"]
    assert stage.ran == []


def test_a_gpu_runs_black_slices_until_the_next_request(ends, monkeypatch):
    monkeypatch.setattr(prompter, "KEEP_WARM_EVERY_S", 0.001)
    stage = Stage(ends, Score(), keeps_warm=True)
    stage.comes_after = 3
    assert stage.prompter.next_request() == b"next"
    assert stage.ran == ["cnn"] * 3


def test_after_a_while_a_gpu_may_rest(ends, monkeypatch):
    monkeypatch.setattr(prompter, "KEEP_WARM_EVERY_S", 0.001)
    monkeypatch.setattr(prompter, "KEPT_WARM_S", 0.0)
    stage = Stage(ends, Score(), keeps_warm=True)
    with later(stage.ours.close):
        assert stage.prompter.next_request() == b""
    assert stage.ran == []


def test_without_a_rhythm_a_cpu_is_left_alone(ends):
    stage = Stage(ends, Score(), keeps_warm=False)
    stage.ours.send(b"only")
    assert stage.prompter.next_request() == b"only"
    with later(stage.ours.close):
        assert stage.prompter.next_request() == b""
    assert stage.ran == []
