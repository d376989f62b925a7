"""What the daemon costs while it does nothing: start, memory, idle processor, imports, disk."""

from __future__ import annotations

import importlib.metadata
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rcm_daemon.bench.stream import pause_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

N_STARTS = 5


def family_of(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    family = [pid]
    for member in family:
        for task in Path(f"/proc/{member}/task").iterdir():
            family += map(int, (task / "children").read_text().split())
    return family


def memory_mb(pids: Iterable[int]) -> tuple[float, float]:
    """Return resident memory of processes together: with pages they share counted each time, and once."""
    rss_kb = pss_kb = 0
    for pid in pids:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        rss_kb += int(re.findall(r"^Rss: +(\d+) kB", text, re.MULTILINE)[0])
        pss_kb += int(re.findall(r"^Pss: +(\d+) kB", text, re.MULTILINE)[0])
    return rss_kb * 1024 / 1e6, pss_kb * 1024 / 1e6


def cpu_share(pids: Sequence[int], seconds: float) -> float:
    """Watch processes for so long; returns the share of one core that they use together."""
    begun_s, begun_ticks = time.monotonic(), sum(map(_ticks, pids))
    pause_until(begun_s + seconds)
    used_s = (sum(map(_ticks, pids)) - begun_ticks) / os.sysconf("SC_CLK_TCK")
    return used_s / (time.monotonic() - begun_s)


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])  # utime and stime, counted from the state on


def command_s(*words: str) -> float:
    """Return the median time that Python takes with these words, from start to end, in seconds."""
    times = []
    for _ in range(N_STARTS):
        begun_s = time.monotonic()
        subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)  # noqa: S603
        times.append(time.monotonic() - begun_s)
    return statistics.median(times)


def installed_mb(package: str = "rcm-daemon") -> dict[str, float]:
    """Return the size on disk of a package and of each that it needs, extras left out, largest first."""
    sizes: dict[str, float] = {}
    wanted = [package]
    for name in wanted:
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # needed elsewhere only
            continue
        needed = [text for text in distribution.requires or [] if "extra ==" not in text]
        names = (re.split(r"[^A-Za-z0-9._-]", text, maxsplit=1)[0].lower() for text in needed)
        wanted += [other for other in dict.fromkeys(names) if other not in wanted]
        files = (Path(str(distribution.locate_file(file))) for file in distribution.files or [])
        sizes[name] = sum(path.stat().st_size for path in files if path.is_file()) / 1e6
    own = Path(__file__).parents[1].rglob("*")  # an editable install lists none of its modules
    sizes[package] = sum(path.stat().st_size for path in own if path.is_file()) / 1e6
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))
