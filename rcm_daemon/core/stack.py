"""One acquisition of one stack: what was received of it, what is missing, and its embeddings by depth."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

from rcm_daemon.core.quality import OUT_OF_DOMAIN, REPEATED, repeats, weight_of, weights_in_stack
from rcm_daemon.core.records import Slice
from rcm_daemon.core.rejection import Rule

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rcm_daemon.core.records import StackEnd, StackStart, StrataEstimate
    from rcm_daemon.core.rejection import Rejection

StackKey = tuple[str, str, int]
"""Instrument, stack id, acquisition."""

State = Literal["open", "complete", "incomplete", "aborted", "abandoned"]

MAX_REJECTIONS_LISTED = 1_000


@dataclass(frozen=True)
class EmbeddedSlice:
    """One slice's embedding (float32 [embedding_size]) with its depth, weight (0..1) and flags."""

    index: int
    z_um: float
    embedding: NDArray[np.float32]
    weight: float = 1.0
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class PartialStack:
    """The n embedded slices so far, by depth, equal depths by index.

    Shapes: `embeddings` float32 [n, embedding_size], `z_um` float64 [n], `weight` float32 [n].
    """

    slices: tuple[EmbeddedSlice, ...] = ()

    def with_slices(self, *new: EmbeddedSlice) -> PartialStack:
        """Return the stack with more slices, each in its place by depth."""
        return PartialStack(tuple(sorted((*self.slices, *new), key=lambda s: (s.z_um, s.index))))

    def __len__(self) -> int:
        return len(self.slices)

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """Embeddings [n, embedding_size]."""
        return np.stack([s.embedding for s in self.slices])

    @property
    def z_um(self) -> NDArray[np.float64]:
        """Depths [n], rising."""
        return np.array([s.z_um for s in self.slices], np.float64)

    @cached_property
    def repeated(self) -> NDArray[np.bool_]:
        """Which slices show the same picture as the one above [n]."""
        return repeats(self.embeddings) if self.slices else np.zeros(0, np.bool_)

    @property
    def flags(self) -> tuple[tuple[str, ...], ...]:
        """Flags of each slice [n]: its own, and whether it shows the same picture as the one above it."""
        pairs = zip(self.slices, self.repeated.tolist(), strict=True)
        return tuple((*s.flags, REPEATED) if again else s.flags for s, again in pairs)

    @property
    def weight(self) -> NDArray[np.float32]:
        """Weights [n]."""
        own = [min(s.weight, weight_of(s.flags)) if s.flags else s.weight for s in self.slices]
        return weights_in_stack(np.array(own, np.float32), self.repeated)


class Received:
    """What is kept of an accepted slice to know it again: its depth and its fingerprint.

    The fingerprint takes as long as all other bookkeeping, so it is taken on first use, which can be while
    the CNN runs; until then the slice is kept.
    """

    __slots__ = ("_fingerprint", "_slice", "z_um")

    def __init__(self, z_um: float, fingerprint: bytes = b"", slice_: Slice | None = None) -> None:
        self.z_um = z_um
        self._fingerprint = fingerprint
        self._slice = slice_

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of all that makes the picture: bytes, scale and pitch."""
        if self._slice is not None:
            self._fingerprint = _fingerprint(self._slice)
            self._slice = None
        return self._fingerprint

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Received) and self.z_um == other.z_um and self.fingerprint == other.fingerprint
        )

    __hash__ = None  # type: ignore[assignment]  # two that are equal need not be told apart


def _fingerprint(received: Slice) -> bytes:
    header = received.header
    mark = hashlib.sha256(received.blob)
    mark.update(repr((header.dtype, header.shape, header.max_value, header.pixel_size_um)).encode())
    return mark.digest()


def digest(message: StackStart | StackEnd | Slice) -> bytes:
    """Return what tells a message from every other by its header, so that it need not be kept itself."""
    header = message.header if isinstance(message, Slice) else message
    return hashlib.sha256(header.model_dump_json(by_alias=True).encode()).digest()[:8]


@dataclass
class Acquisition:
    """The account of one acquisition of one stack; mutated by the ledger and nobody else.

    `number` tells it from every other acquisition a daemon ever had. `first_msg_number` opened it, in the
    run `first_run_id`; `run_id` is the latest. `received` holds every accepted slice by index, `pending`
    those of them not labelled yet, `partial` those that are. `ended` is the state to publish once nothing
    is pending any more.
    """

    instrument: str
    stack_id: str
    acquisition: int
    run_id: str
    first_msg_number: int
    n_lost_before: int
    shape: tuple[int, int]
    dtype: str
    pixel_size_um: float
    touched_s: float
    number: int = 0
    first_run_id: str = ""
    bundle_digest: str = ""
    start: StackStart | None = None
    end: StackEnd | None = None
    ended: State = "open"
    partial: PartialStack = field(default_factory=PartialStack)
    received: dict[int, Received] = field(default_factory=dict)
    pending: set[int] = field(default_factory=set)
    rejected_index: list[int] = field(default_factory=list)
    rejected_reason: list[str] = field(default_factory=list)
    n_rejected: int = 0
    conflict_index: list[int] = field(default_factory=list)
    n_conflicts: int = 0
    estimate: StrataEstimate | None = None
    revision: int = 0

    @property
    def key(self) -> StackKey:
        """What tells this acquisition from all others."""
        return self.instrument, self.stack_id, self.acquisition

    @property
    def state(self) -> State:
        """`open` until the stack has ended and all its slices are through."""
        return "open" if self.pending else self.ended

    @property
    def n_expected(self) -> int:
        """How many slices there should be: as sent, else as planned, else 0."""
        if self.end is not None:
            return self.end.n_slices
        return self.start.n_slices if self.start is not None else 0

    @property
    def is_stranded(self) -> bool:
        """Whether its bundle went and took slices with it that have not come again."""
        gone = f"R{Rule.BUNDLE_GONE.value} "
        listed = zip(self.rejected_index, self.rejected_reason, strict=True)
        return any(reason.startswith(gone) and index not in self.received for index, reason in listed)

    def share_seen(self, n_slices: int) -> float:
        """Share of the stack that `n_slices` are, 0 = not known."""
        return min(1.0, n_slices / self.n_expected) if self.n_expected else 0.0

    @property
    def missing_index(self) -> list[int]:
        """The holes below the highest index known to have been sent; refused slices are no holes."""
        highest = max(self.received, default=-1)
        if self.end is not None:
            highest = max(highest, self.end.n_slices - 1)
        refused = set(self.rejected_index)
        return [i for i in range(highest + 1) if i not in self.received and i not in refused]

    @property
    def flags(self) -> list[str]:
        """What is to be known of the stack as a whole, from a closed list."""
        found = []
        by_index = [self.received[i].z_um for i in sorted(self.received)]
        n_falling = sum(b < a for a, b in pairwise(by_index))
        n_rising = sum(b > a for a, b in pairwise(by_index))
        if self.start is None:
            found.append("start_missing")
        if n_falling > 2 * n_rising:  # a scan that follows advice turns back now and then
            found.append("z_reversed")
        if len(set(by_index)) < len(by_index):
            found.append("equal_z")
        own = self.partial.flags
        if any("pitch_resampled" in flags for flags in own):
            found.append("pitch_resampled")
        if sum(OUT_OF_DOMAIN in flags for flags in own) > len(own) / 2:
            found.append(OUT_OF_DOMAIN)
        return found

    def note_rejection(self, rejection: Rejection) -> None:
        """Report a refused message in every later result of this stack."""
        self.n_rejected += 1
        if len(self.rejected_index) < MAX_REJECTIONS_LISTED:
            self.rejected_index.append(rejection.origin.index)
            self.rejected_reason.append(str(rejection))

    def note_conflict(self, index: int) -> None:
        """Report a slice that came again with other bytes or another z; the first is kept."""
        self.n_conflicts += 1
        if index not in self.conflict_index:
            self.conflict_index.append(index)
