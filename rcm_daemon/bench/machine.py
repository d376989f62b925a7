"""On what and with what was measured."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("rcm-daemon", "numpy", "onnxruntime-gpu", "onnxruntime", "openvino", "torch", "pyzmq")
TELLING_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


def describe_machine() -> dict[str, Any]:
    """Return processor, cores, memory, kernel, GPU and the load average as the run begins."""
    cpu = _cpu_fields()
    flags = cpu.get("flags", "").split()
    return {
        "cpu": cpu.get("model name", platform.processor() or platform.machine()),
        "instruction_sets": [flag for flag in TELLING_FLAGS if flag in flags],
        "n_cores": os.cpu_count(),
        "n_cores_allowed": len(os.sched_getaffinity(0)),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1_000_000,
        "kernel": platform.release(),
        "gpu": _gpu(),
        "load_average": list(os.getloadavg()),
        "niceness": os.nice(0),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of what of `PACKAGES` is installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpu_fields() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def _gpu() -> str:
    """Name and driver of the first GPU as NVIDIA's own tool tells them, empty where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    query = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)  # noqa: S603
    return done.stdout.strip().split("\n")[0] if done.returncode == 0 else ""
