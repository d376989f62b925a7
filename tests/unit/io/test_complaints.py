"""What is logged of connections that fail again and again: each kind once a minute, with how often."""

from __future__ import annotations

import logging

import pytest
import zmq

from rcm_daemon.io import door as doors
from rcm_daemon.io.door import Door
from rcm_daemon.io.line import Line

FAILED_AUTH, FAILED_PROTOCOL = zmq.EVENT_HANDSHAKE_FAILED_AUTH, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL


class Monitor:
    """Stands for libzmq's: gives the events that are put in."""

    def __init__(self) -> None:
        self.events: list[int] = []

    def get(self, _: int) -> int:
        return zmq.POLLIN if self.events else 0


class Socket:
    """Stands for a watched one."""

    def __init__(self) -> None:
        self.monitor = Monitor()
        self.n_connected = 0

    def get_monitor_socket(self, _: int) -> Monitor:
        return self.monitor

    def disable_monitor(self) -> None: ...

    def disconnect(self, _: str) -> None: ...

    def connect(self, _: str) -> None:
        self.n_connected += 1


@pytest.fixture
def door(tmp_path, monkeypatch):
    monkeypatch.setattr(doors, "recv_monitor_message", lambda monitor: {"event": monitor.events.pop(0)})
    return Door(None, tmp_path, None)


def told(caplog, *fields: str) -> list[tuple[object, ...]]:
    rows = [(record.getMessage(), *(getattr(record, name) for name in fields)) for record in caplog.records]
    caplog.clear()
    return rows


def test_each_kind_of_refusal_is_told_at_once_and_then_once_a_minute(door, caplog):
    results = Socket()
    door.watch(results, "results")
    for second in range(130):
        results.monitor.events += [FAILED_AUTH, FAILED_AUTH]
        if second == 30:
            results.monitor.events.append(FAILED_PROTOCOL)
        door.note_events(1_000.0 + second)
        door.report_refusals(1_000.0 + second)
    assert told(caplog, "reason", "n") == [
        ("connections refused", "key_refused", 2),
        ("connections refused", "no_or_wrong_key", 1),
        ("connections refused", "key_refused", 120),
        ("connections refused", "key_refused", 120),
    ]
    door.report_refusals(float("inf"))
    assert told(caplog, "n") == [("connections refused", 18)]
    assert door.refused["results", "key_refused"] == 260


def test_of_a_controller_that_refuses_the_daemon_its_endpoint_is_told(door, caplog):
    for port in (1, 2):
        socket = Socket()
        door.watch(socket, "slices", Line(socket, f"tcp://127.0.0.1:{port}"))
        socket.monitor.events.append(FAILED_AUTH)
    door.note_events(0.0)
    door.report_refusals(0.0)
    assert told(caplog, "endpoint", "reason", "n") == [
        ("no connection to a controller", "tcp://127.0.0.1:1", "key_refused", 1),
        ("no connection to a controller", "tcp://127.0.0.1:2", "key_refused", 1),
    ]


def test_a_line_that_breaks_every_second_is_told_once_a_minute(caplog):
    caplog.set_level(logging.WARNING)
    socket = Socket()
    line = Line(socket, "tcp://127.0.0.1:1")
    for second in range(130):
        line.note(zmq.Event.DISCONNECTED, 1_000.0 + second)
        line.restore(1_001.0 + second)
    assert socket.n_connected == 130
    what = "a controller broke the protocol or refuses this daemon's key, connected anew"
    assert told(caplog, "n") == [(what, 1), (what, 60), (what, 60)]
