"""A bundle run over whole stacks through ONNX Runtime, in worker processes, slices streamed and never kept.

Where the stacks come from makes no difference after this: a data set's files, or phantoms rendered on the
way.
"""

from __future__ import annotations

import hashlib
import math
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from itertools import compress
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np

from rcm_daemon.bundle.field import to_field
from rcm_daemon.bundle.picture import quality_flags
from rcm_daemon.bundle.sessions import Networks
from rcm_daemon.bundle.verify import load_verified
from rcm_daemon.core.advice import ROUNDING_UM
from rcm_daemon.core.pipeline import Estimation, Recurrence, estimate_strata
from rcm_daemon.core.quality import weight_of
from rcm_daemon.core.stack import EmbeddedSlice, PartialStack
from rcm_daemon.errors import DataSetError
from trainer.data.manifest import LabelledStack
from trainer.data.phantoms import SetParameters, StackPlan, build_stack, plan_stacks
from trainer.data.prepared import fields_of_stack
from trainer.onnx_recurrent import rcn_graph
from trainer.progress import progress_bar
from trainer.scores import depths
from trainer.worker_pool import worker_pool

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from rcm_daemon.core.pipeline import Recurrent
    from rcm_daemon.core.records import StrataEstimate
    from rcm_daemon.simulator import Phantom
    from trainer.networks.rcn import RecurrentStrata

Planned = tuple[StackPlan, SetParameters]
Source = LabelledStack | Planned


@dataclass(frozen=True)
class StackRun:
    """One stack through bundles, in their order.

    Attributes
    ----------
    stack
        The stack.
    slices
        [n] of each bundle: embeddings of its CNN, weights, and flags of the pictures.
    probabilities
        float32 [n, 3] of each bundle, over the whole stack.
    estimates
        What each bundle's own estimator says of the whole stack, None where it has none.
    n_planned
        Slices that would have come had nobody stopped the scan, see `LeftOut`; 0 = as many as came.
    weight
        Stacks that it stands for; 0 = it was not run, see `LeftOut`.
    """

    stack: LabelledStack
    slices: tuple[tuple[EmbeddedSlice, ...], ...] = ()
    probabilities: tuple[np.ndarray, ...] = ()
    estimates: tuple[StrataEstimate | None, ...] = ()
    n_planned: int = 0
    weight: float = 1.0


@dataclass(frozen=True)
class LeftOut:
    """Which slices of a stack never arrive, and which stacks are not run at all.

    Attributes
    ----------
    missing
        Share of them, 0..1, drawn by the stack's name; the first one always arrives.
    extent_um
        Those farther below the first one.
    first_share
        Of what is left, all but the first slices that make up this share, above 0 to 1: the scan is looked at
        while it goes on.
    taken
        Pairs of a distance in um and a share above 0: of the stacks whose epidermis-DEJ lies less than that
        below the last slice that arrives, that share is run, drawn by the stack's seed or name; the first
        pair that fits counts.
    """

    missing: float = 0.0
    extent_um: float = math.inf
    first_share: float = 1.0
    taken: tuple[tuple[float, float], ...] = ((math.inf, 1.0),)

    def arriving(self, stack: LabelledStack) -> tuple[np.ndarray, int]:
        """Return which slices arrive (bool [n]), and how many would have if the scan had gone on."""
        drawn = np.random.default_rng(crc32(stack.stack.encode())).uniform(size=stack.n_slices)
        arriving = drawn >= self.missing
        arriving[0] = True
        arriving &= stack.z_um <= stack.z_um[0] + self.extent_um + ROUNDING_UM
        n_planned = int(arriving.sum())
        arriving &= np.cumsum(arriving) <= max(1, math.floor(self.first_share * n_planned))
        return arriving, n_planned

    def weight(self, stack: LabelledStack, last_um: float, seed: int) -> float:
        """Return how many stacks one stands for of which slices down to `last_um` arrive, 0 = not run."""
        first_um = (stack.boundaries_um or depths(stack.labels, stack.z_um))[0]
        below_um = math.inf if first_um is None else first_um - last_um
        share = next((share for um, share in self.taken if below_um < um), self.taken[-1][1])
        return 1 / share if np.random.default_rng([seed, 1]).uniform() < share else 0.0


WHOLE = LeftOut()


def fresh_phantoms(
    bundle_digest: str,
    n_stacks: int,
    families: Sequence[str],
    purpose: str,
    z_step_um: float | None = None,
    pixel_size_um: float = 0.5,
) -> list[Planned]:
    """Plan phantoms that nobody has tuned to: their seed follows from the bundle's digest.

    Parameters
    ----------
    bundle_digest
        SHA-256 of the bundle's manifest, hex.
    n_stacks
        Number of stacks.
    families
        Families to draw from.
    purpose
        A word that tells sets of one bundle apart.
    z_step_um
        Step of all of them, None as drawn.
    pixel_size_um
        Pitch they are recorded at; the field is 500 um wide at any.
    """
    side = round(500 / pixel_size_um)
    seed = int(hashlib.sha256(f"{bundle_digest}:{purpose}".encode()).hexdigest()[:8], 16) & 0x7FFF_FFFF
    parameters = SetParameters(
        seed=seed,
        n_stacks=n_stacks,
        rows=side,
        columns=side,
        pixel_size_um=pixel_size_um,
        families=tuple(families),
        stacks_per_patient=2.0,
        z_step_um=z_step_um,
    )
    return [(plan, parameters) for plan in plan_stacks(parameters)]


def run_bundles(
    folders: Sequence[Path],
    sources: Sequence[Source],
    n_workers: int,
    title: str,
    left_out: LeftOut = WHOLE,
) -> list[StackRun]:
    """Run bundles over stacks; a CNN that two bundles share runs once a slice.

    Parameters
    ----------
    folders
        Bundle folders.
    sources
        Stacks of a data set, or planned phantoms.
    n_workers
        Processes, one thread each; 1 works in this one.
    title
        What the progress bar says.
    left_out
        Slices that never arrive.

    Returns
    -------
    list of StackRun
        In the order of `sources`.

    Raises
    ------
    RcmError
        If a bundle or a file cannot be used.
    """
    with progress_bar(title, len(sources), "stacks") as advance:
        results: dict[int, StackRun] = {}
        for number, result in _in_any_order(tuple(folders), sources, n_workers, left_out):
            results[number] = result
            advance(1, "")
    return [results[number] for number in range(len(sources))]


def _in_any_order(
    folders: tuple[Path, ...], sources: Sequence[Source], n_workers: int, left_out: LeftOut
) -> Iterator[tuple[int, StackRun]]:
    if n_workers <= 1:
        _open(folders)
        yield from ((number, _run(source, left_out)) for number, source in enumerate(sources))
        return
    with worker_pool(n_workers, _open, folders) as pool:
        pending = {pool.submit(_run, source, left_out): number for number, source in enumerate(sources)}
        try:
            for finished in as_completed(pending):
                yield pending[finished], finished.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


_networks: list[Networks] = []
_cnn_of: list[int] = []


def _open(folders: tuple[Path, ...]) -> None:
    import cv2

    cv2.setNumThreads(1)
    _networks.clear()
    _cnn_of.clear()
    digests: list[str] = []
    for folder in folders:
        bundle = load_verified(folder)
        _networks.append(Networks.open(bundle, "cpu", 1))
        digests.append(bundle.manifest.files["cnn.onnx"].sha256)
        _cnn_of.append(digests.index(digests[-1]))


def _run(source: Source, left_out: LeftOut) -> StackRun:
    phantom: Phantom | None = None
    if isinstance(source, LabelledStack):
        stack, seed = source, crc32(source.stack.encode())
    else:
        phantom = build_stack(*source)
        stack, seed = _labelled(phantom, source[0]), source[0].seed
    arrived, n_planned = left_out.arriving(stack)
    stack = thinned(stack, arrived)
    weight = left_out.weight(stack, stack.z_um[-1], seed)
    if weight == 0:
        return StackRun(stack, n_planned=n_planned, weight=0.0)
    fields = _rendered(phantom, stack.pages) if phantom is not None else fields_of_stack(stack)
    embeddings: dict[int, list[np.ndarray]] = {index: [] for index in _cnn_of}
    flags: list[list[tuple[str, ...]]] = [[] for _ in _networks]
    for number, trio in enumerate(_with_neighbours(fields)):
        for index, rows in embeddings.items():
            in_context = _networks[index].manifest.kind == "context"
            image = np.stack(trio) if in_context else trio[1]
            rows.append(_networks[index].embed(image, f"slice {number} of {stack.stack}"))
        for own, networks in zip(flags, _networks, strict=True):
            own.append(quality_flags(trio[1], networks.domain))
    probabilities, estimates, slices = [], [], []
    for networks, index, own in zip(_networks, _cnn_of, flags, strict=True):
        slices.append(
            tuple(
                EmbeddedSlice(i, float(z_um), row, weight_of(words), words)
                for i, (z_um, row, words) in enumerate(zip(stack.z_um, embeddings[index], own, strict=True))
            )
        )
        partial, parameters = PartialStack(slices[-1]), networks.estimator_parameters
        estimate = estimate_strata(partial, networks.recur, Estimation(parameters), 1.0)
        probabilities.append(estimate.probabilities)
        estimates.append(estimate if parameters else None)
    return StackRun(stack, tuple(slices), tuple(probabilities), tuple(estimates), n_planned, weight)


def thinned(stack: LabelledStack, kept: np.ndarray) -> LabelledStack:
    """Return the stack with the slices that `kept` (bool [n]) marks; its boundaries stay where they were."""
    return replace(
        stack,
        files=tuple(compress(stack.files, kept)),
        pages=tuple(compress(stack.pages, kept)),
        z_um=stack.z_um[kept],
        boundaries_um=stack.boundaries_um or depths(stack.labels, stack.z_um),
        labels=stack.labels[kept],
        readings={name: labels[kept] for name, labels in stack.readings.items()},
    )


def graph_runner(network: RecurrentStrata) -> Recurrent:
    """Run a segmental network through the graph it would be exported as, probabilities as trained."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    graph = rcn_graph(network).SerializeToString()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def run(embeddings: np.ndarray, z_um: np.ndarray, weight: np.ndarray) -> Recurrence:
        feed = {"embeddings": embeddings, "z_um": z_um, "weight": weight}
        return Recurrence(*session.run(["probabilities", "evidence"], feed))

    return run


def _with_neighbours(fields: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Each field between those above and below it, at an end of the stack the field itself."""
    above = middle = next(fields)
    for below in fields:
        yield above, middle, below
        above, middle = middle, below
    yield above, middle, middle


def _rendered(phantom: Phantom, indices: Sequence[int]) -> Iterator[np.ndarray]:
    shape, pitch = _networks[0].manifest.input.shape, _networks[0].manifest.input.pixel_size_um
    for index in indices:
        yield to_field(phantom.render(index), phantom.pixel_size_um, 255, shape, pitch)[0]


def _labelled(phantom: Phantom, plan: StackPlan) -> LabelledStack:
    n_slices = len(phantom)
    readers = phantom.reader_labels
    return LabelledStack(
        stack=plan.name,
        patient=f"patient-{plan.patient_number:04d}",
        site=phantom.site,
        family=phantom.family,
        files=(),
        pages=tuple(range(n_slices)),
        z_um=np.asarray(phantom.z_um, np.float64),
        pixel_size_um=phantom.pixel_size_um,
        labels=np.asarray(phantom.labels, np.int64),
        readings={
            "reader_1": np.asarray(readers[0], np.int64),
            "reader_2": np.asarray(readers[1], np.int64),
            "true_label": np.asarray(phantom.true_labels, np.int64),
        },
        boundaries_um=phantom.boundaries_um,
    )


def check_same_input(folders: Sequence[Path]) -> None:
    """Refuse bundles that take other fields than this program prepares.

    Raises
    ------
    DataSetError
        Naming the bundle.
    """
    from trainer.data.prepared import FIELD_PIXEL_SIZE_UM, FIELD_SHAPE

    for folder in folders:
        wanted = load_verified(folder).manifest.input
        if wanted.shape != FIELD_SHAPE or wanted.pixel_size_um != FIELD_PIXEL_SIZE_UM:
            raise DataSetError(
                f"a bundle to evaluate takes {list(FIELD_SHAPE)} at {FIELD_PIXEL_SIZE_UM:g} um, {folder} "
                f"takes {list(wanted.shape)} at {wanted.pixel_size_um:g} um"
            )
