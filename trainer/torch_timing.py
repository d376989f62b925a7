"""The trained CNN in torch itself, timed on request: what `rcm-daemon bench` sets beside ONNX Runtime.

Started as `python -m trainer.torch_timing <eager|compile> <cnn.pt> <cpu|cuda> <threads>`. Once warm
it writes an empty line; then, for every line it reads, one with the milliseconds that a slice took.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from trainer.networks.inception import SliceEmbedder
from trainer.train_cnn import load_cnn

if TYPE_CHECKING:
    from collections.abc import Callable

FIELD = (1000, 1000)
N_WARM_UP = 3


def timed_run(mode: str, checkpoint: Path, device: str) -> Callable[[], float]:
    """Return what embeds a random slice once, and gives the milliseconds that took; it is warm."""
    network, _ = load_cnn(checkpoint)
    embedder = SliceEmbedder(network.eval()).to(device)
    run = torch.compile(embedder) if mode == "compile" else embedder
    shape = (1, *FIELD) if network.n_slices == 1 else (1, network.n_slices, *FIELD)
    slices = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def once() -> float:
        begun_ns = time.perf_counter_ns()
        with torch.inference_mode():
            run(slices.to(device)).cpu()  # as the daemon's: from received bytes to an embedding at hand
        return (time.perf_counter_ns() - begun_ns) / 1e6

    for _ in range(N_WARM_UP):
        once()
    return once


def main() -> None:
    """Serve standard input until it ends."""
    mode, checkpoint, device, n_threads = sys.argv[1:]
    torch.set_num_threads(int(n_threads))
    once = timed_run(mode, Path(checkpoint), device)
    print(flush=True)
    for _ in sys.stdin:
        print(once(), flush=True)


if __name__ == "__main__":
    main()
