"""Moves the wall clock of a process: while the file CLOCK exists, by the seconds that it holds."""

from __future__ import annotations

import os
import time
from pathlib import Path

plain_time, plain_time_ns = time.time, time.time_ns


def shift_s() -> float:
    try:
        return float(Path(os.environ["CLOCK"]).read_text())
    except (OSError, KeyError, ValueError):
        return 0.0


time.time = lambda: plain_time() + shift_s()
time.time_ns = lambda: plain_time_ns() + int(shift_s() * 1e9)
