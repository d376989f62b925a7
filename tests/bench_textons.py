"""Prints how long each texton method takes to encode a slice of 1000 x 1000 on one core."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when numpy is imported

import statistics
import time

import cv2

from rcm_daemon.simulator import make_phantom
from trainer.textons.model import METHODS, learn_textons

N_SLICES = 8


def main() -> None:
    cv2.setNumThreads(1)
    phantom = make_phantom(3)
    step = max(1, len(phantom) // N_SLICES)
    images = [phantom.render(index) for index in range(0, len(phantom), step)][:N_SLICES]
    rows, columns = images[0].shape
    for method in METHODS:
        textons = learn_textons(method, images, len(images), seed=0)
        seconds = []
        for image in images * 3:
            started = time.perf_counter()
            textons.encode(image)
            seconds.append(time.perf_counter() - started)
        print(
            f"{method:7} {rows} x {columns}: median {1e3 * statistics.median(seconds):.0f} ms, "
            f"longest {1e3 * max(seconds):.0f} ms a slice"
        )


if __name__ == "__main__":
    main()
