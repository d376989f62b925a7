"""A daemon of one's own on this machine: on free ports, with a state folder that goes when it goes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from rcm_daemon.errors import RcmError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

STOP_S = 30.0


class LocalDaemonError(RcmError):
    """A daemon that was started here ended or did not become ready."""


class LocalDaemon:
    """`rcm-daemon serve` in a process of its own; a context manager that ends it.

    Parameters
    ----------
    folder
        For its state, its log and the socket it says READY on; the caller's to remove.
    options
        Of `serve`, besides the endpoints.
    n_controllers
        How many it takes slices from.
    environment
        Variables of its own.

    Attributes
    ----------
    controllers, results, control
        Its endpoints.
    log
        Its log.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        n_controllers: int = 1,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.results, self.control, *self.controllers = (free_endpoint() for _ in range(2 + n_controllers))
        self._log_path = folder / "log"
        self.log = self._log_path.open("w")
        self._notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notified.bind(str(folder / "notify"))
        command = [sys.executable, "-m", "rcm_daemon", "serve"]
        command += [word for endpoint in self.controllers for word in ("--slices-connect", endpoint)]
        command += ["--results-bind", self.results, "--control-bind", self.control]
        command += ["--state-dir", str(folder / "state"), *options]
        own = {**os.environ, **(environment or {}), "NOTIFY_SOCKET": str(folder / "notify")}
        self._started_s = time.monotonic()
        self.process = subprocess.Popen(command, stderr=self.log, env=own)  # noqa: S603

    def __enter__(self) -> LocalDaemon:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._notified.close()
        self.log.close()

    def await_ready(self, patience_s: float) -> float:
        """Wait for its READY; returns the seconds from its start to that.

        Raises
        ------
        LocalDaemonError
            It ended, or was not ready in time.
        """
        self._notified.settimeout(0.25)
        while time.monotonic() - self._started_s < patience_s:
            try:
                said = self._notified.recv(4096)
            except TimeoutError:
                self.check_alive()
                continue
            if b"READY=1" in said.splitlines():
                return time.monotonic() - self._started_s
        raise LocalDaemonError(f"a daemon must be ready within {patience_s:g} s, it is not; {self.said()}")

    def check_alive(self) -> None:
        """Look whether it still runs.

        Raises
        ------
        LocalDaemonError
            It has ended.
        """
        code = self.process.poll()
        if code is not None:
            raise LocalDaemonError(f"the daemon ended with exit code {code}; {self.said()}")

    def said(self) -> str:
        """Quote the end of its log, as half a sentence."""
        return said_in(self._log_path)


def said_in(log: Path) -> str:
    """Quote the end of a process's log, as half a sentence."""
    return f"it said: {' '.join(log.read_text().split())[-500:] or 'nothing'}"


def free_endpoint() -> str:
    """Return an endpoint of this machine that nobody holds now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"
