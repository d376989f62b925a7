"""Slices to embeddings to probabilities, each by the worker of its stack's bundle; nothing here waits.

Slices are embedded one by one in the order they came. The recurrent network is rerun for a stack when no
further slice of it waits, else after COALESCE_S at the latest, so that reruns coalesce under load and
slices never do. A slice of a stack with nothing else waiting is embedded and labelled in one request: a
round trip more costs as much as the recurrent network. What a dead worker had in hand is given to its
successor; a slice that ends its worker twice is quarantined.
"""

from __future__ import annotations

import logging
import select
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rcm_daemon.bundle.supervisor import COMMAND, Answer, Died, Ready, Supervisor
from rcm_daemon.core.estimator import NOTHING_SAID
from rcm_daemon.core.message import Latency
from rcm_daemon.core.pipeline import Recurrence, is_to_follow, said_so_far
from rcm_daemon.core.rejection import Rule
from rcm_daemon.core.stack import EmbeddedSlice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rcm_daemon.bundle.channel import BundleInfo
    from rcm_daemon.bundle.launch import Launch
    from rcm_daemon.core.estimator import Said
    from rcm_daemon.core.records import Slice
    from rcm_daemon.core.stack import Acquisition, PartialStack

log = logging.getLogger("rcm_daemon")

COALESCE_S = 0.25
MAX_KILLS = 2


@dataclass
class SliceJob:
    """A slice to embed for a stack, received at `received_ns`; times are monotonic."""

    stack: Acquisition
    slice: Slice
    received_ns: int
    n_kills: int = 0
    is_labelled_too: bool = False
    before: Said = NOTHING_SAID


@dataclass
class NewSlice:
    """An embedded slice that its stack is not labelled with yet, and when it was received and embedded."""

    embedded: EmbeddedSlice
    received_ns: int = 0
    started_ns: int = 0
    finished_ns: int = 0
    n_kills: int = 0

    def latency(self, now_ns: int) -> Latency:
        """Return the parts of its way until now; nothing where it was received before a restart."""
        if not self.received_ns:
            return Latency()
        return Latency(
            wait_ms=(self.started_ns - self.received_ns) / 1e6,
            embed_ms=(self.finished_ns - self.started_ns) / 1e6,
            label_ms=(now_ns - self.finished_ns) / 1e6,
            total_ms=(now_ns - self.received_ns) / 1e6,
        )


@dataclass
class _Unlabelled:
    stack: Acquisition
    since_s: float
    new: list[NewSlice] = field(default_factory=list)
    one_by_one: bool = False  # after a failure, to find the slice that is to blame


@dataclass
class _LabelJob:
    unlabelled: _Unlabelled
    partial: PartialStack
    new: list[NewSlice]
    before: Said


@dataclass(frozen=True)
class Embedded:
    """A slice has its embedding."""

    stack: Acquisition
    new: EmbeddedSlice


@dataclass(frozen=True)
class Labelled:
    """What the recurrent network gives of a partial stack, with the slices that are new to it.

    `before` is what is said of all its slices but the deepest.
    """

    stack: Acquisition
    partial: PartialStack
    given: Recurrence
    new: tuple[NewSlice, ...]
    before: Said = NOTHING_SAID


@dataclass(frozen=True)
class Unusable:
    """A slice that gave no embedding, or that its stack cannot be labelled with."""

    stack: Acquisition
    index: int
    rule: Rule
    detail: str


@dataclass(frozen=True)
class Opened:
    """A bundle is served from now on, or again."""

    bundle: BundleInfo


@dataclass(frozen=True)
class NotOpened:
    """A bundle's worker ended before it had served anything."""

    reason: str
    refused: str


Outcome = Embedded | Labelled | Unusable | Opened | NotOpened


class Desk:
    """One bundle's worker and what waits for it."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.n_deaths = 0
        self.n_embedded = 0
        self._slices: deque[SliceJob] = deque()
        self._n_slices_of: Counter[int] = Counter()
        self._unlabelled: OrderedDict[int, _Unlabelled] = OrderedDict()
        self._in_hand: SliceJob | _LabelJob | None = None
        self._just_labelled: set[int] = set()  # stacks whose new partial stack nobody has taken over yet

    @property
    def n_waiting(self) -> int:
        """Slices that have not been labelled or refused."""
        in_hand = isinstance(self._in_hand, SliceJob)
        return len(self._slices) + in_hand + sum(len(u.new) for u in self._unlabelled.values())

    @property
    def next_due_s(self) -> float | None:
        """When `advance` must be called at the latest (monotonic)."""
        times = [] if self.supervisor.due_s is None else [self.supervisor.due_s]
        if self.supervisor.is_free and self._slices:
            times += [u.since_s + COALESCE_S for u in self._unlabelled.values()]
        return min(times, default=None)

    def stacks(self) -> list[Acquisition]:
        """Return the stacks that have slices waiting."""
        stacks = [job.stack for job in self._slices] + [u.stack for u in self._unlabelled.values()]
        if isinstance(self._in_hand, SliceJob):
            stacks.append(self._in_hand.stack)
        return list({id(stack): stack for stack in stacks}.values())

    def embed(self, job: SliceJob) -> None:
        """Queue a slice."""
        self._slices.append(job)
        self._n_slices_of[id(job.stack)] += 1

    def label(self, stack: Acquisition, new: list[NewSlice], now_s: float) -> None:
        """Have a stack labelled with these slices too."""
        self._unlabelled.setdefault(id(stack), _Unlabelled(stack, now_s)).new.extend(new)

    def advance(self, now_s: float) -> list[Outcome]:
        """Take what the worker answered, and give it what is next.

        Where there are outcomes, act on them and call again: a stack that they label is not labelled further
        before its partial stack has been taken over.
        """
        outcomes: list[Outcome] = []
        self._just_labelled.clear()
        for event in self.supervisor.advance(now_s):
            if isinstance(event, Ready):
                outcomes.append(Opened(event.bundle))
            elif isinstance(event, Died):
                outcomes += self._on_death(event)
            else:
                outcomes += self._on_answer(event, now_s)
        self.give_next(now_s)
        return outcomes

    def give_next(self, now_s: float) -> None:
        """Give the worker what is next, if it is free."""
        if not self.supervisor.is_free:
            return
        for key, unlabelled in self._unlabelled.items():
            if key in self._just_labelled:
                continue
            waits = self._n_slices_of[id(unlabelled.stack)] > 0
            if not waits or now_s - unlabelled.since_s >= COALESCE_S:
                new = unlabelled.new[: 1 if unlabelled.one_by_one else None]
                partial = unlabelled.stack.partial.with_slices(*(n.embedded for n in new))
                before, unsaid = _what_was_said(unlabelled.stack, partial)
                self._in_hand = _LabelJob(unlabelled, partial, new, before)
                self.supervisor.memory.write_stack(partial)
                self.supervisor.request({"kind": "label", "n": len(partial)} | unsaid, now_s)
                return
        if self._slices:
            job = self._slices.popleft()
            self._n_slices_of[id(job.stack)] -= 1
            self._n_slices_of += Counter()  # forgets stacks at zero
            self._in_hand = job
            self.supervisor.memory.write(job.slice.blob)
            header = job.slice.header.model_dump(by_alias=True)
            job.is_labelled_too = self._may_label_along(job)
            fields = {"kind": "embed", "n_bytes": job.slice.blob.nbytes, "header": header}
            self.supervisor.request(fields | {"stack_follows": job.is_labelled_too}, now_s)
            if job.is_labelled_too:  # the CNN runs meanwhile
                self._send_stack(job)

    def _may_label_along(self, job: SliceJob) -> bool:
        """Whether a slice's stack is labelled in the same request, not later together with other slices."""
        key = id(job.stack)
        return not (self._n_slices_of[key] or key in self._unlabelled or key in self._just_labelled)

    def _send_stack(self, job: SliceJob) -> None:
        """Give the worker the slices its new one is to be labelled among, that one's own row still empty."""
        header, bundle = job.slice.header, self.supervisor.bundle
        assert bundle is not None  # noqa: S101  # a worker that takes requests has opened one
        empty = EmbeddedSlice(header.index, header.z_um, np.zeros(bundle.embedding_size, np.float32))
        partial = job.stack.partial.with_slices(empty)
        self.supervisor.memory.write_stack(partial, job.slice.blob.nbytes)
        place = [one.index for one in partial.slices].index(header.index)
        job.before, unsaid = _what_was_said(job.stack, partial)
        self.supervisor.follow_up({"n": len(partial), "place": place} | unsaid)

    def _on_answer(self, answer: Answer, now_s: float) -> list[Outcome]:
        job, self._in_hand = self._in_hand, None
        fields = answer.fields
        if isinstance(job, SliceJob):
            return self._on_embedded(job, answer, now_s)
        assert job is not None  # noqa: S101
        if fields["kind"] == "failed":
            return self._refuse(job, Rule.NOT_LABELLED, fields["error"])
        self._settle(job, now_s)
        said = fields.get("said", job.before)
        return [self._labelled(job.unlabelled.stack, job.partial, answer.payload, job.new, said)]

    def _on_embedded(self, job: SliceJob, answer: Answer, now_s: float) -> list[Outcome]:
        fields, stack, index = answer.fields, job.stack, job.slice.header.index
        if fields["kind"] == "failed":
            return [Unusable(stack, index, Rule.NOT_EMBEDDED, fields["error"])]
        self.n_embedded += 1
        n_bytes = answer.fields["n_bytes"]
        embedded = _embedded(job, fields, answer.payload[:n_bytes])
        new = NewSlice(embedded, job.received_ns, fields["started_ns"], fields["finished_ns"])
        outcomes: list[Outcome] = [Embedded(stack, embedded)]
        if not job.is_labelled_too:
            self.label(stack, [new], now_s)
        elif fields["error"]:
            outcomes.append(Unusable(stack, index, Rule.NOT_LABELLED, fields["error"]))
        else:
            partial = stack.partial.with_slices(embedded)
            said = fields.get("said", job.before)
            outcomes.append(self._labelled(stack, partial, answer.payload[n_bytes:], [new], said))
        return outcomes

    def _labelled(
        self, stack: Acquisition, partial: PartialStack, payload: bytes, new: list[NewSlice], said: Said
    ) -> Labelled:
        self._just_labelled.add(id(stack))
        probabilities, *evidence = np.frombuffer(payload, np.float32).reshape(-1, len(partial), 3)
        return Labelled(stack, partial, Recurrence(probabilities, *evidence), tuple(new), (said[0], said[1]))

    def _on_death(self, died: Died) -> list[Outcome]:
        job, self._in_hand = self._in_hand, None
        self.n_deaths += 1
        if self.supervisor.bundle is None:
            return [NotOpened(died.reason, died.refused)]
        log.error("%s; a new one takes over", died.reason)
        if job is None or not died.had_request:
            return []
        detail = f"{died.reason} {MAX_KILLS} times over this slice"
        if isinstance(job, SliceJob):
            job.n_kills += 1
            if job.n_kills >= MAX_KILLS:
                return [Unusable(job.stack, job.slice.header.index, Rule.QUARANTINED, detail)]
            self._slices.appendleft(job)
            self._n_slices_of[id(job.stack)] += 1
            return []
        if len(job.new) == 1:
            job.new[0].n_kills += 1
            if job.new[0].n_kills < MAX_KILLS:
                return []
        return self._refuse(job, Rule.QUARANTINED, detail)

    def _refuse(self, job: _LabelJob, rule: Rule, detail: str) -> list[Outcome]:
        """Give up the one new slice, or, where there are several, find the one to blame."""
        if len(job.new) > 1:
            job.unlabelled.one_by_one = True
            return []
        refused = job.new[0].embedded.index
        self._settle(job, job.unlabelled.since_s)
        return [Unusable(job.unlabelled.stack, refused, rule, detail)]

    def _settle(self, job: _LabelJob, now_s: float) -> None:
        unlabelled = job.unlabelled
        del unlabelled.new[: len(job.new)]
        unlabelled.since_s = now_s
        if not unlabelled.new:
            del self._unlabelled[id(unlabelled.stack)]


def _what_was_said(stack: Acquisition, partial: PartialStack) -> tuple[Said, dict[str, Any]]:
    """Return what is known to be said of all slices but the deepest, and what is to be asked for the rest."""
    known = said_so_far(stack.partial, stack.estimate, partial)
    follows = is_to_follow(known, len(partial))
    return known[1], {"known": known, "z_um": partial.z_um.tolist()} if follows else {}


def _embedded(job: SliceJob, fields: dict[str, Any], embedding: bytes) -> EmbeddedSlice:
    header = job.slice.header
    values = np.frombuffer(embedding, np.float32)
    return EmbeddedSlice(header.index, header.z_um, values, fields["weight"], tuple(fields["flags"]))


class Inference:
    """The desks of all bundles that are served or that an open stack began with.

    Parameters
    ----------
    deadline_s
        A worker that does not answer a request by then is replaced.
    command
        Starts a worker.
    """

    def __init__(self, deadline_s: float, command: Sequence[str] = COMMAND) -> None:
        self._deadline_s = deadline_s
        self._command = command
        self._interest = select.epoll()
        self.desks: list[Desk] = []
        self._n_embedded_before = self._n_deaths_before = 0

    def fileno(self) -> int:
        """Return a descriptor that is readable when a worker has answered or died."""
        return self._interest.fileno()

    def open(self, launch: Launch, now_s: float) -> Desk:
        """Start a worker for one more bundle."""
        desk = Desk(Supervisor(launch, self._deadline_s, self._interest, now_s, self._command))
        self.desks.append(desk)
        return desk

    def close(self, desk: Desk) -> None:
        """End one bundle's worker."""
        self.desks.remove(desk)
        self._n_embedded_before += desk.n_embedded
        self._n_deaths_before += desk.n_deaths
        desk.supervisor.close()

    def close_all(self) -> None:
        """End all workers."""
        for desk in list(self.desks):
            self.close(desk)
        self._interest.close()

    @property
    def n_waiting(self) -> int:
        """Slices received and neither labelled nor refused."""
        return sum(desk.n_waiting for desk in self.desks)

    @property
    def n_embedded(self) -> int:
        """Slices embedded since the start."""
        return self._n_embedded_before + sum(desk.n_embedded for desk in self.desks)

    @property
    def n_restarts(self) -> int:
        """Workers that had to be replaced since the start."""
        return self._n_deaths_before + sum(desk.n_deaths for desk in self.desks)

    @property
    def next_due_s(self) -> float | None:
        """When a desk must be advanced at the latest (monotonic)."""
        times = [due for desk in self.desks if (due := desk.next_due_s) is not None]
        return min(times, default=None)
