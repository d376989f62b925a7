"""What the daemon is measured against: its own CNN alone, and other ways to the same answer."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from rcm_daemon.bundle.embedding import embed_slice
from rcm_daemon.bundle.execution import ON_GPU
from rcm_daemon.bundle.field import to_field
from rcm_daemon.bundle.sessions import Networks
from rcm_daemon.core.pipeline import Estimation, estimate_strata, said_before
from rcm_daemon.core.stack import PartialStack
from rcm_daemon.errors import RcmError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from rcm_daemon.bundle.verify import VerifiedBundle
    from rcm_daemon.core.pipeline import Known
    from rcm_daemon.core.records import Slice, StrataEstimate


class RivalError(RcmError):
    """Something that was to be measured cannot be run here."""


class Rival(Protocol):
    """Runs a CNN once on a slice in the bundle's field; returns the milliseconds that took."""

    name: str

    def run(self, image: NDArray[np.uint8]) -> float:
        """Run once."""

    def close(self) -> None:
        """Give back what it holds."""


class BareCnn:
    """The `session.run` that the daemon's worker does, in the same kind of session, and nothing else.

    `Networks.embed` is that run and a look at the shape and the finiteness of its 256 values (10 us).
    """

    def __init__(self, networks: Networks, name: str = "bare") -> None:
        self._networks = networks
        self.name = name

    def run(self, image: NDArray[np.uint8]) -> float:
        """Run once."""
        begun_ns = time.perf_counter_ns()
        self._networks.embed(image)
        return (time.perf_counter_ns() - begun_ns) / 1e6

    def close(self) -> None:
        """Nothing to give back."""


class TorchCnn:
    """The network in torch as it was trained, in a process of its own, which times itself.

    The daemon never imports torch; the trainer's `torch_timing` does, where it is installed.
    """

    def __init__(self, mode: str, checkpoint: Path, device: str, n_threads: int) -> None:
        self.name = f"torch {mode}"
        command = [sys.executable, "-m", "trainer.torch_timing", mode, str(checkpoint), device]
        command.append(str(n_threads))
        self._process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._read()  # waits until it is warm

    def run(self, image: NDArray[np.uint8]) -> float:
        """Run once, on a slice of its own of the same size."""
        del image
        stdin = self._process.stdin
        assert stdin is not None  # noqa: S101
        stdin.write("\n")
        stdin.flush()
        return float(self._read())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _read(self) -> str:
        stdout = self._process.stdout
        assert stdout is not None  # noqa: S101
        line = stdout.readline()
        if not line:
            self.close()
            raise RivalError(f"{self.name} was not measured: its process ended, see what it said above")
        return line


def rivals_of(
    bundle: VerifiedBundle, networks: Networks, checkpoint: Path | None
) -> tuple[list[Rival], list[str]]:
    """Open what can be run here besides the daemon's own CNN; returns it, and a sentence for all else.

    OpenVINO runs the same variant on as many threads as `networks`, torch its float32 network.
    """
    rivals: list[Rival] = []
    notes = []
    if importlib.util.find_spec("openvino") is not None:
        choice = networks.n_threads, networks.variant
        try:
            rivals.append(BareCnn(Networks.open(bundle, "openvino", *choice), "openvino"))
        except RcmError as error:
            notes.append(f"OpenVINO was not measured: {error}")
    else:
        notes.append("OpenVINO was not measured: it is not installed here")
    if importlib.util.find_spec("torch") is None:
        notes.append("torch was not measured: it is not installed here")
    elif checkpoint is None:
        notes.append(
            "torch was not measured: a bundle holds no torch network, give its cnn.pt as --checkpoint"
        )
    else:
        device = "cuda" if networks.provider in ON_GPU else "cpu"
        for mode in ("eager", "compile"):
            try:
                rivals.append(TorchCnn(mode, checkpoint, device, networks.n_threads))
            except RivalError as error:
                notes.append(str(error))
    return rivals, notes


class ReembeddingScript:
    """What one would write without the daemon: at every slice, embed all slices so far and label them.

    It remembers what it said one slice before, and nothing else.
    """

    def __init__(self, networks: Networks, slices: Sequence[Slice]) -> None:
        self._networks = networks
        self._slices = slices
        self._estimation = Estimation(networks.estimator_parameters)
        self._before: dict[int, Known] = {}

    def run(self, n_slices: int) -> tuple[float, StrataEstimate]:
        """Label the first `n_slices`; returns the milliseconds that took, and what is said of them."""
        if n_slices not in self._before:
            said = said_before(self._embedded(n_slices), self._networks.recur, self._estimation)
            self._before[n_slices] = n_slices - 1, said
        begun_ns = time.perf_counter_ns()
        stack, known = self._embedded(n_slices), self._before[n_slices]
        estimate = estimate_strata(stack, self._networks.recur, self._estimation, known=known)
        return (time.perf_counter_ns() - begun_ns) / 1e6, estimate

    def _embedded(self, n_slices: int) -> PartialStack:
        slices = self._slices[:n_slices]
        return PartialStack().with_slices(*(embed_slice(self._networks, one) for one in slices))


def field_of(received: Slice, bundle: VerifiedBundle) -> NDArray[np.uint8]:
    """Bring a slice to what the bundle's CNN takes: its field, three times over where it sees neighbours."""
    header, wanted = received.header, bundle.manifest.input
    field, _ = to_field(
        received.pixels, header.pixel_size_um, header.max_value, wanted.shape, wanted.pixel_size_um
    )
    return np.broadcast_to(field, bundle.manifest.cnn_shape).copy()


def largest_difference(
    message: dict[str, Any],
    rows: NDArray[np.float32],
    key: Literal["probability", "posterior"] = "probability",
) -> float:
    """Return how far the daemon's rows [n, 3] are from others of the same slices."""
    return float(np.abs(np.asarray(message[key]) - rows).max())
