from __future__ import annotations

from rcm_daemon.io.heap import QUIET_S, Heap


def test_memory_is_given_back_once_after_each_time_something_came(monkeypatch) -> None:
    heap, given_back = Heap(), []
    monkeypatch.setattr(heap, "_trim", given_back.append)
    for tenth in range(50):
        heap.rest(tenth / 10, 0)
    assert given_back == []  # nothing has come
    for tenth in range(50, 100):
        heap.rest(tenth / 10, tenth)
    assert given_back == []  # slices come all the time
    for tenth in range(100, 300):
        heap.rest(tenth / 10, 99)
        assert len(given_back) == (tenth / 10 >= 9.9 + QUIET_S)
    heap.rest(31.0, 100)
    heap.rest(31.0 + QUIET_S, 100)
    assert len(given_back) == 2


def test_where_the_allocator_is_another_nothing_is_done(monkeypatch) -> None:
    heap = Heap()
    monkeypatch.setattr(heap, "_trim", None)
    heap.rest(0.0, 1)
    heap.rest(9.0, 1)
