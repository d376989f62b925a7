"""Recorded stacks through the daemon's own pipeline, without sockets."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
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
from rcm_daemon.core.records import Slice
from rcm_daemon.errors import RcmError, StackFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from rcm_daemon.bundle.embedding import PreparedSlice
    from rcm_daemon.bundle.execution import ProviderChoice, VariantChoice
    from rcm_daemon.bundle.verify import VerifiedBundle
    from rcm_daemon.core.records import SliceHeader
    from rcm_daemon.core.stack import Acquisition, EmbeddedSlice
    from rcm_daemon.readers import RecordedStack

INSTRUMENT = "replay"
THUMBNAIL_PX = 200
AHEAD = 8
"""Slices a lane that are read while one is still to be labelled: so many are embedded meanwhile."""
NO_PIXELS = memoryview(b"")
"""What the account is given of a slice that is embedded already: it needs no more than the header."""


@dataclass(frozen=True)
class Replayed:
    """One stack's messages: `live` one a slice as the daemon would have published, `final` the last.

    `thumbnails` hold each slice made small, uint8, by index. Either is empty where it was not asked for.
    `is_dim`: its grey levels are likely those of a camera with fewer bits, and nobody said of how many.
    """

    final: StrataMessage
    live: tuple[StrataMessage, ...]
    thumbnails: tuple[NDArray[np.uint8], ...]
    is_dim: bool = False


@dataclass(frozen=True)
class _Prepared:
    """A slice as received, ready for the CNN, and when reading it began."""

    header: SliceHeader
    prepared: PreparedSlice
    thumbnail: NDArray[np.uint8] | None
    begun_ns: int


@dataclass(frozen=True)
class _Done:
    """A slice as embedded, and when the CNN began and ended."""

    before: _Prepared
    embedded: EmbeddedSlice
    started_ns: int
    finished_ns: int


class _Stack:
    """A stack on its way: what is read of it, and what has been said of it so far."""

    def __init__(self, recorded: RecordedStack, first_number: int) -> None:
        self.recorded = recorded
        self.controller = Controller(INSTRUMENT, INSTRUMENT, first_number)
        self.plan = StackPlan(
            recorded.stack_id,
            recorded.z_um,
            recorded.shape,
            recorded.dtype,
            recorded.max_value,
            recorded.pixel_size_um,
        )
        self.start = self.controller.start(self.plan)
        self.has_failed = False
        self.acquisition: Acquisition | None = None
        self.waiting: list[EmbeddedSlice] = []
        self.live: list[StrataMessage] = []
        self.thumbnails: list[NDArray[np.uint8]] = []
        self.brightest = 0


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
        self._source = Source(__version__, networks.manifest.name, networks.digest, networks.provider)
        self._n_messages = 0
        self._seq = 0

    def replay(self, stack: RecordedStack) -> Replayed:
        """Feed a stack slice by slice, in the order of its file, and close it.

        Raises
        ------
        StackFileError
            A slice cannot be read or labelled.
        InferenceError
            A slice cannot be embedded.
        """
        (replayed,) = self.replay_each([stack])
        if isinstance(replayed, RcmError):
            raise replayed
        return replayed

    def replay_each(
        self,
        stacks: Iterable[RecordedStack | RcmError],
        progress: Callable[[RecordedStack], None] = lambda stack: None,
    ) -> Iterator[Replayed | RcmError]:
        """Replay stacks, of which the next one is read and embedded while the last one is labelled.

        Parameters
        ----------
        stacks
            Taken when the slices of those before are on their way, and closed; an error stands for a stack
            that could not be opened.
        progress
            Called after each slice.

        Yields
        ------
        One a stack, in their order: what is said of it, or why that cannot be.
        """
        for stack, future in self._embedded(stacks):
            if stack is not None and stack.has_failed:
                continue
            try:
                done = future.result()
                replayed = self._take(stack, done) if stack is not None else None
            except RcmError as error:
                if stack is not None:
                    stack.has_failed = True
                yield error
                continue
            if stack is not None:
                progress(stack.recorded)
            if replayed is not None:
                yield replayed

    def _take(self, stack: _Stack, done: _Done) -> Replayed | None:
        """Label what is there of a stack; returns what is said of it after its last slice."""
        if stack.acquisition is None:
            stack.acquisition = self._ledger.accept(stack.start, 0.0).changed[-1]
        acquisition, before, n_slices = stack.acquisition, done.before, stack.recorded.n_slices
        self._ledger.accept(Slice(before.header, NO_PIXELS), 0.0)
        stack.waiting.append(done.embedded)
        if before.thumbnail is not None:
            stack.thumbnails.append(before.thumbnail)
        is_last = len(acquisition.partial) + len(stack.waiting) == n_slices
        if self._live or is_last:
            take_in(self._ledger, acquisition, stack.waiting, self._networks.recur, self._estimation)
            stack.waiting = []
        if acquisition.rejected_reason:
            raise StackFileError(f"{stack.recorded.path}: {acquisition.rejected_reason[-1]}")
        if not self._live:
            self._count(acquisition)
        else:
            now_ns = time.monotonic_ns()
            latency = Latency(
                wait_ms=(done.started_ns - before.begun_ns) / 1e6,
                embed_ms=(done.finished_ns - done.started_ns) / 1e6,
                label_ms=(now_ns - done.finished_ns) / 1e6,
                total_ms=(now_ns - before.begun_ns) / 1e6,
            )
            stack.live.append(self._message(acquisition, latency))
        if not is_last:
            return None
        self._ledger.accept(stack.controller.end(stack.plan, n_slices), 0.0)
        final = self._message(acquisition, Latency())
        is_dim = stack.recorded.is_dim(stack.brightest)
        return Replayed(final, tuple(stack.live), tuple(stack.thumbnails), is_dim)

    def _embedded(
        self, stacks: Iterable[RecordedStack | RcmError]
    ) -> Iterator[tuple[_Stack | None, Future[_Done]]]:
        """Embed slices on all lanes, a few ahead of who takes them in their order.

        This thread reads and prepares them: lanes that only run the CNN hardly need the interpreter, for
        which threads would wait in turn. What cannot be read has failed in its place.
        """
        ahead: deque[tuple[_Stack | None, Future[_Done]]] = deque()
        n_lanes = self._networks.n_lanes
        lanes = ThreadPoolExecutor(n_lanes)
        try:
            for stack, submitted in self._submitted(stacks, lanes):
                ahead.append((stack, submitted))
                while ahead and (ahead[0][1].done() or len(ahead) > AHEAD * n_lanes):
                    yield ahead.popleft()
        except Exception:
            yield from ahead  # what was read before is told before what nobody expected
            raise
        else:
            yield from ahead
        finally:
            lanes.shutdown(cancel_futures=True)

    def _submitted(
        self, stacks: Iterable[RecordedStack | RcmError], lanes: ThreadPoolExecutor
    ) -> Iterator[tuple[_Stack | None, Future[_Done]]]:
        """Read slice after slice and hand each to the lanes, until its stack ends or fails."""
        for recorded in stacks:
            if isinstance(recorded, RcmError):
                yield None, _failed(recorded)
                continue
            with recorded:
                stack = _Stack(recorded, self._n_messages)
                self._n_messages += recorded.n_slices + 2  # with start and end
                for index in range(recorded.n_slices):
                    try:
                        prepared = self._prepare(stack, index)
                    except RcmError as error:
                        yield stack, _failed(error)
                        break
                    yield stack, lanes.submit(self._embed, prepared)
                    if stack.has_failed:
                        break

    def _prepare(self, stack: _Stack, index: int) -> _Prepared:
        begun_ns = time.monotonic_ns()
        recorded = stack.recorded
        image = recorded.read(index)
        if recorded.dtype == "uint16":
            stack.brightest = max(stack.brightest, int(image.max()))
        received = stack.controller.slice(stack.plan, index, image, time.time_ns(), with_crc=False)
        small = thumbnail(image, recorded.max_value) if self._thumbnails else None
        prepared = prepare_slice(self._networks, received, self._neighbours(recorded, index))
        return _Prepared(received.header, prepared, small, begun_ns)

    def _embed(self, before: _Prepared) -> _Done:
        started_ns = time.monotonic_ns()
        embedded = embed_prepared(self._networks, before.prepared)
        return _Done(before, embedded, started_ns, time.monotonic_ns())

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


def _failed(error: RcmError) -> Future[_Done]:
    future: Future[_Done] = Future()
    future.set_exception(error)
    return future


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
