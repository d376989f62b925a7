"""Recorded stacks through the daemon's own pipeline, without sockets."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from rcm_daemon import __version__
from rcm_daemon.bundle.embedding import embed_prepared, prepare_slice
from rcm_daemon.core.controller import Controller, StackPlan
from rcm_daemon.core.ledger import Ledger
from rcm_daemon.core.message import Latency, Source, StrataMessage, build_message
from rcm_daemon.core.pipeline import Estimation, take_in
from rcm_daemon.errors import StackFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from rcm_daemon.bundle.embedding import PreparedSlice
    from rcm_daemon.bundle.sessions import Networks
    from rcm_daemon.core.records import Slice
    from rcm_daemon.core.stack import Acquisition
    from rcm_daemon.readers import RecordedStack

INSTRUMENT = "replay"
THUMBNAIL_PX = 200
AHEAD = 4
"""Slices that are read and prepared while the CNN is at an earlier one."""


@dataclass(frozen=True)
class Replayed:
    """One stack's messages: `live` one a slice as the daemon would have published, `final` the last.

    `thumbnails` hold each slice made small, uint8, by index. Either is empty where it was not asked for.
    """

    final: StrataMessage
    live: tuple[StrataMessage, ...]
    thumbnails: tuple[NDArray[np.uint8], ...]


@dataclass(frozen=True)
class _Read:
    """A slice as received and as prepared, and when reading it began."""

    received: Slice
    prepared: PreparedSlice
    thumbnail: NDArray[np.uint8] | None
    begun_ns: int


class Replayer:
    """Replays stacks one after another through one bundle, as one run of the instrument `replay`.

    Parameters
    ----------
    networks
        Of the bundle.
    estimation
        How strata are read off them; none = as the bundle's estimator does.
    live
        Whether to label each stack slice by slice; else once, which gives the same final message.
    thumbnails
        Whether to keep small pictures.
    """

    def __init__(
        self,
        networks: Networks,
        estimation: Estimation | None = None,
        *,
        live: bool = True,
        thumbnails: bool = True,
    ) -> None:
        self._networks = networks
        self._estimation = estimation or Estimation(networks.estimator_parameters)
        self._live = live
        self._thumbnails = thumbnails
        self._ledger = Ledger(idle_timeout_s=float("inf"))
        self._controller = Controller(INSTRUMENT, INSTRUMENT)
        self._source = Source(__version__, networks.manifest.name, networks.digest, networks.provider)
        self._seq = 0

    def replay(self, stack: RecordedStack, progress: Callable[[], None] = lambda: None) -> Replayed:
        """Feed a stack slice by slice, in the order of its file; `progress` is called after each.

        Raises
        ------
        StackFileError
            A slice cannot be read or labelled.
        InferenceError
            A slice cannot be embedded.
        """
        plan = StackPlan(
            stack.stack_id,
            stack.z_um,
            stack.shape,
            stack.dtype,
            stack.max_value,
            stack.pixel_size_um,
        )
        acquisition = self._ledger.accept(self._controller.start(plan), 0.0).changed[-1]
        live, thumbnails, waiting = [], [], []
        for read in self._read_ahead(stack, plan):
            self._ledger.accept(read.received, 0.0)
            started_ns = time.monotonic_ns()
            waiting.append(embed_prepared(self._networks, read.prepared))
            embedded_ns = time.monotonic_ns()
            if read.thumbnail is not None:
                thumbnails.append(read.thumbnail)
            if self._live or read.received.header.index == stack.n_slices - 1:
                take_in(self._ledger, acquisition, waiting, self._networks.recur, self._estimation)
                waiting = []
            if acquisition.rejected_reason:
                raise StackFileError(f"{stack.path}: {acquisition.rejected_reason[-1]}")
            if not self._live:
                self._count(acquisition)
            else:
                now_ns = time.monotonic_ns()
                latency = Latency(
                    wait_ms=(started_ns - read.begun_ns) / 1e6,
                    embed_ms=(embedded_ns - started_ns) / 1e6,
                    label_ms=(now_ns - embedded_ns) / 1e6,
                    total_ms=(now_ns - read.begun_ns) / 1e6,
                )
                live.append(self._message(acquisition, latency))
            progress()
        self._ledger.accept(self._controller.end(plan, len(stack.z_um)), 0.0)
        return Replayed(self._message(acquisition, Latency()), tuple(live), tuple(thumbnails))

    def _read_ahead(self, stack: RecordedStack, plan: StackPlan) -> Iterator[_Read]:
        """Read and prepare slices in a thread of its own, a few ahead of who takes them."""
        ahead: deque[Future[_Read]] = deque()
        thread = ThreadPoolExecutor(1)
        try:
            for index in range(stack.n_slices):
                ahead.append(thread.submit(self._read, stack, plan, index))
                if len(ahead) > AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            thread.shutdown(cancel_futures=True)

    def _read(self, stack: RecordedStack, plan: StackPlan, index: int) -> _Read:
        begun_ns = time.monotonic_ns()
        image = stack.read(index)
        received = self._controller.slice(plan, index, image, time.time_ns())
        prepared = prepare_slice(self._networks, received, self._neighbours(stack, index))
        small = thumbnail(image, stack.max_value) if self._thumbnails else None
        return _Read(received, prepared, small, begun_ns)

    def _neighbours(
        self, stack: RecordedStack, index: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
        """Read the slices above and below in depth, at an end the slice itself, for a CNN that sees them."""
        if self._networks.manifest.kind != "context":
            return None
        by_depth = sorted(range(stack.n_slices), key=stack.z_um.__getitem__)
        place = by_depth.index(index)
        above, below = by_depth[max(place - 1, 0)], by_depth[min(place + 1, stack.n_slices - 1)]
        return stack.read(above), stack.read(below)

    def _message(self, acquisition: Acquisition, latency: Latency) -> StrataMessage:
        self._count(acquisition)
        return build_message(
            acquisition, self._source, latency, seq=self._seq, time_ns=time.time_ns(), n_lost=0
        )

    def _count(self, acquisition: Acquisition) -> None:
        """Give the next message its numbers, whether it is kept or not."""
        self._seq += 1
        acquisition.revision += 1


def thumbnail(image: NDArray[np.uint8] | NDArray[np.uint16], max_value: int) -> NDArray[np.uint8]:
    """Return a slice at most THUMBNAIL_PX a side, uint8; `max_value` 0 = the dtype's."""
    scale = min(1.0, THUMBNAIL_PX / max(image.shape))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA)
    largest = max_value or np.iinfo(image.dtype).max
    scaled: NDArray[np.uint8] = np.clip(small * (255.0 / largest), 0, 255).astype(np.uint8)
    return scaled
