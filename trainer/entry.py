"""The console script `rcm-trainer`, able to say what to install when it cannot run."""

from __future__ import annotations

import sys
from importlib.util import find_spec

NEEDED = ("torch", "onnx", "sklearn", "tensorboard")


def main() -> None:
    """Run `rcm-trainer`; exits 1 with one sentence when the `trainer` extra is not installed."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        sys.exit(f'rcm-trainer needs {", ".join(missing)}: install it with pip install "rcm-daemon[trainer]"')
    from trainer.cli import run

    run()
