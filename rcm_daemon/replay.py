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
from rcm_daemon.bundle.sessions import Networks
from rcm_daemon.core.controller import Controller, StackPlan
from rcm_daemon.core.ledger import Ledger
from rcm_daemon.core.message import Latency, Source, StrataMessage, build_message
from rcm_daemon.core.pipeline import Estimation, take_in
from rcm_daemon.errors import StackFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from rcm_daemon.bundle.execution import ProviderChoice, VariantChoice
    from rcm_daemon.bundle.verify import VerifiedBundle
    from rcm_daemon.core.records import Slice
    from rcm_daemon.core.stack import Acquisition, EmbeddedSlice
    from rcm_daemon.readers import RecordedStack

INSTRUMENT = "replay"
THUMBNAIL_PX = 200
AHEAD = 2
"""Slices a lane that are read while an earlier one is still to be labelled."""


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
    """A slice as received, its neighbours' pixels where they matter, and when reading it began."""

    received: Slice
    neighbours: tuple[NDArray[np.uint8], NDArray[np.uint8]] | None
    begun_ns: int


@dataclass(frozen=True)
class _Done:
    """A slice as received and as embedded, and the times at which that began, was prepared and was done."""

    received: Slice
    embedded: EmbeddedSlice
    thumbnail: NDArray[np.uint8] | None
    begun_ns: int
    prepared_ns: int
    finished_ns: int


class Replayer:
    """Replays stacks one after another through one bundle, as one run of the instrument `replay`.

    Parameters
    ----------
    networks
        Of the bundle; opened for one thread a run they embed a slice on each core at once.
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
        for done in self._embedded(stack, plan):
            self._ledger.accept(done.received, 0.0)
            waiting.append(done.embedded)
            if done.thumbnail is not None:
                thumbnails.append(done.thumbnail)
            if self._live or len(waiting) == stack.n_slices:
                take_in(self._ledger, acquisition, waiting, self._networks.recur, self._estimation)
                waiting = []
            if acquisition.rejected_reason:
                raise StackFileError(f"{stack.path}: {acquisition.rejected_reason[-1]}")
            if not self._live:
                self._count(acquisition)
            else:
                now_ns = time.monotonic_ns()
                latency = Latency(
                    wait_ms=(done.prepared_ns - done.begun_ns) / 1e6,
                    embed_ms=(done.finished_ns - done.prepared_ns) / 1e6,
                    label_ms=(now_ns - done.finished_ns) / 1e6,
                    total_ms=(now_ns - done.begun_ns) / 1e6,
                )
                live.append(self._message(acquisition, latency))
            progress()
        self._ledger.accept(self._controller.end(plan, len(stack.z_um)), 0.0)
        return Replayed(self._message(acquisition, Latency()), tuple(live), tuple(thumbnails))

    def _embedded(self, stack: RecordedStack, plan: StackPlan) -> Iterator[_Done]:
        """Embed slices on all lanes, a few ahead of who takes them in the order of the file.

        Files are read by one thread, which numbers the slices too.
        """
        ahead: deque[Future[_Done]] = deque()
        n_lanes = self._networks.n_lanes
        reader, lanes = ThreadPoolExecutor(1), ThreadPoolExecutor(n_lanes)
        try:
            for index in range(stack.n_slices):
                read = reader.submit(self._read, stack, plan, index)
                ahead.append(lanes.submit(self._embed, read, stack.max_value))
                if len(ahead) > AHEAD * n_lanes:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            reader.shutdown(cancel_futures=True)
            lanes.shutdown(cancel_futures=True)

    def _read(self, stack: RecordedStack, plan: StackPlan, index: int) -> _Read:
        begun_ns = time.monotonic_ns()
        image = stack.read(index)
        received = self._controller.slice(plan, index, image, time.time_ns(), with_crc=False)
        return _Read(received, self._neighbours(stack, index), begun_ns)

    def _embed(self, read: Future[_Read], max_value: int) -> _Done:
        one = read.result()
        small = thumbnail(one.received.pixels, max_value) if self._thumbnails else None
        prepared = prepare_slice(self._networks, one.received, one.neighbours)
        prepared_ns = time.monotonic_ns()
        embedded = embed_prepared(self._networks, prepared)
        return _Done(one.received, embedded, small, one.begun_ns, prepared_ns, time.monotonic_ns())

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


def open_for_replay(bundle: VerifiedBundle, provider: ProviderChoice, variant: VariantChoice) -> Networks:
    """Open a bundle so that slices are embedded side by side, which is faster than all cores on one slice.

    Raises
    ------
    BundleError
        As of `Networks.open`.
    """
    # OpenVINO has threads of its own, and takes one slice at a time.
    return Networks.open(bundle, provider, 0 if provider == "openvino" else 1, variant)


def thumbnail(image: NDArray[np.uint8] | NDArray[np.uint16], max_value: int) -> NDArray[np.uint8]:
    """Return a slice at most THUMBNAIL_PX a side, uint8; `max_value` 0 = the dtype's."""
    scale = min(1.0, THUMBNAIL_PX / max(image.shape))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA)
    largest = max_value or np.iinfo(image.dtype).max
    scaled: NDArray[np.uint8] = np.clip(small * (255.0 / largest), 0, 255).astype(np.uint8)
    return scaled
