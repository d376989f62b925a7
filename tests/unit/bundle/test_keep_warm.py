"""Between the slices of a stack a worker keeps its GPU busy, and leaves a CPU alone."""

from __future__ import annotations

import socket

import pytest

from rcm_daemon.bundle import worker


class Fake:
    """Networks that know where they run and count black slices; the n-th one brings the next request."""

    def __init__(self, provider: str, other: socket.socket, comes_after: int) -> None:
        self.provider = provider
        self.n_black = 0
        self._other, self._comes_after = other, comes_after

    def keep_warm(self) -> None:
        self.n_black += 1
        if self.n_black == self._comes_after:
            self._other.send(b"request")


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_gpu_runs_black_slices_until_the_next_request(ends, monkeypatch, provider):
    monkeypatch.setattr(worker, "KEEP_WARM_EVERY_S", 0.001)
    networks = Fake(provider, ends[0], comes_after=3)
    assert worker.next_request(ends[1], networks) == b"request"
    assert networks.n_black == 3


def test_a_request_that_waits_is_taken_at_once(ends):
    ends[0].send(b"first")
    networks = Fake("cuda", ends[0], comes_after=-1)
    assert worker.next_request(ends[1], networks) == b"first"
    assert networks.n_black == 0


def test_after_a_while_a_gpu_may_rest(ends, monkeypatch):
    monkeypatch.setattr(worker, "KEEP_WARM_EVERY_S", 0.001)
    monkeypatch.setattr(worker, "KEPT_WARM_S", 0.004)
    networks = Fake("cuda", ends[0], comes_after=4)  # the last one there is
    assert worker.next_request(ends[1], networks) == b"request"
    assert networks.n_black == 4


def test_a_cpu_is_left_alone(ends):
    networks = Fake("cpu", ends[0], comes_after=-1)
    ends[0].close()
    assert worker.next_request(ends[1], networks) == b""
    assert networks.n_black == 0
