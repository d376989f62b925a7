"""Words to a service manager that may be stuck."""

from __future__ import annotations

import socket
import time

from rcm_daemon.io.notify import Manager


def test_a_manager_that_does_not_read_costs_no_time(tmp_path, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stuck:
        stuck.bind(str(tmp_path / "notify"))
        manager = Manager()
        began_s = time.monotonic()
        for _ in range(5_000):  # more than any queue of datagrams holds
            manager.tell("WATCHDOG=1")
        assert time.monotonic() - began_s < 60  # one that waited a second each would take hours
        assert stuck.recv(100) == b"WATCHDOG=1"
        manager.close()


def test_no_manager_and_one_that_went_away_are_no_fault(tmp_path, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    for _ in range(2):
        manager = Manager()
        manager.tell("READY=1", 1.0)
        manager.close()
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)


def test_an_abstract_socket(monkeypatch):
    name = f"rcm-daemon-test-{time.monotonic_ns()}"
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{name}")
        manager = Manager()
        manager.tell("READY=1", 1.0)
        assert listening.recv(100) == b"READY=1"
        manager.close()
