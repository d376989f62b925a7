"""What this machine's processor offers to a CNN: int8 products in one instruction, and cores to run on."""

from __future__ import annotations

import os
import re
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
CPU_FOLDER = Path("/sys/devices/system/cpu")
INT8_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni", "asimddp", "i8mm"})
"""As Linux calls them: sums of four int8 products in 32 bits. Without them ONNX Runtime adds pairs in 16
bits, which saturates, so that int8 networks are not only slow there but compute something else."""


def has_int8_products() -> bool:
    """Whether the processor has any of `INT8_PRODUCTS`; False where Linux does not say."""
    try:
        text = CPU_INFO.read_text()
    except OSError:
        return False
    # One line a core: "flags" on x86, "Features" on ARM.
    lines = re.findall(r"^(?:flags|Features)\s*:(.*)$", text, flags=re.MULTILINE)
    return bool(lines) and all(INT8_PRODUCTS & set(line.split()) for line in lines)


def n_cores() -> int:
    """Count the physical cores that this process may use (taskset, CPUAffinity, cpusets), at least 1.

    ONNX Runtime, left to itself, counts and pins its threads to all cores of the machine.
    """
    if not hasattr(os, "sched_getaffinity"):
        return max(1, os.cpu_count() or 1)
    siblings = {_siblings(cpu) for cpu in os.sched_getaffinity(0)}
    return max(1, len(siblings))


def _siblings(cpu: int) -> str:
    try:
        return (CPU_FOLDER / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)
