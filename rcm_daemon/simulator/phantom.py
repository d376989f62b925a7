"""A phantom stack: simulated skin under a simulated microscope, rendered slice by slice."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from rcm_daemon.simulator.family import FAMILIES, SITES, TRAINING_FAMILIES, Family
from rcm_daemon.simulator.labels import read_boundaries, strata_at, true_boundaries
from rcm_daemon.simulator.optics import Camera, Exposure, expose, vignette
from rcm_daemon.simulator.recipe import LESIONAL_SHARE, Recipe, draw_depths, draw_patient, draw_recipe
from rcm_daemon.simulator.relief import build_relief
from rcm_daemon.simulator.tissue import Tissue, build_tissue, section

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rcm_daemon.simulator.grids import Frame, Grid
    from rcm_daemon.simulator.relief import Relief

DRIFT_MARGIN_UM = 24
"""Tissue kept on every side of the field for lateral drift."""

# One stream of random numbers a purpose, so that a change in one leaves the others alone.
_PATIENT, _SITE, _TISSUE, _DEPTHS, _READERS, _ACQUISITION, _SLICE = range(7)


def _stream(seed: int, purpose: int, index: int = 0) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([seed, purpose, index]))


@dataclass(frozen=True)
class Phantom:
    """One simulated stack with its ground truth; build it with `make_phantom`.

    All depths are in the stack's own z, in um, growing downward from an arbitrary zero.

    Attributes
    ----------
    stack_id, patient, site, family
        Names.
    lesional
        Whether the site carries a lesion.
    seed
        Reproduces the stack together with the arguments of `make_phantom`.
    shape, pixel_size_um
        Rows and columns of a slice, and their pitch.
    z_step_um, z_um
        Distance of neighbouring slices, and the depth of each ([n]).
    true_boundaries_um
        Depths at which most of the field switches: epidermis to DEJ, DEJ to dermis.
    reader_boundaries_um
        [2, 2]: for each simulated reader, both boundaries.
    """

    stack_id: str
    patient: str
    site: str
    family: str
    lesional: bool
    seed: int
    shape: tuple[int, int]
    pixel_size_um: float
    z_step_um: float
    z_um: NDArray[np.float64]
    true_boundaries_um: tuple[float, float]
    reader_boundaries_um: NDArray[np.float64]
    _z_zero_um: float = field(repr=False)
    _recipe: Recipe = field(repr=False)
    _relief: Relief = field(repr=False)
    _extent_um: tuple[int, int] = field(repr=False)
    _tissue_rng: np.random.Generator = field(repr=False)
    _camera: Camera = field(repr=False)
    _corners: Grid = field(repr=False)
    _drift_um: NDArray[np.intp] = field(repr=False)
    _exposures: tuple[Exposure, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.z_um)

    @cached_property
    def _tissue(self) -> Tissue:
        """Textures, most of the work: made when the first slice is rendered."""
        return build_tissue(deepcopy(self._tissue_rng), self._recipe, self._relief, self._extent_um)

    @cached_property
    def boundaries_um(self) -> tuple[float, float]:
        """The readers' consensus: the mean of their boundaries."""
        first, second = self.reader_boundaries_um.mean(axis=0)
        return float(first), float(second)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """[n] strata by the readers' consensus: 0 epidermis, 1 DEJ, 2 dermis."""
        return strata_at(self.z_um, self.boundaries_um)

    @cached_property
    def true_labels(self) -> NDArray[np.int64]:
        """[n] strata by the true boundaries."""
        return strata_at(self.z_um, self.true_boundaries_um)

    @cached_property
    def reader_labels(self) -> NDArray[np.int64]:
        """[2, n] strata by each reader's boundaries."""
        return np.stack([strata_at(self.z_um, boundaries) for boundaries in self.reader_boundaries_um])

    def render(self, index: int) -> Frame:
        """Slice `index` as the microscope would deliver it (uint8 [rows, columns]).

        Slices may be rendered in any order, and again: the same index gives the same pixels.
        """
        return self.render_at(float(self.z_um[index]), index)

    def render_at(self, z_um: float, index: int) -> Frame:
        """Frame at any depth `z_um`, with its own noise and the drift and gain of slice `index`.

        Indices past the last slice count round the stack.
        """
        rng = _stream(self.seed, _SLICE, index % (1 << 31))
        place = index % len(self)
        depth_um = z_um - self._z_zero_um
        row, column = (int(v) for v in self._drift_um[place])
        light = section(self._tissue, depth_um, (row, column), self._camera.field_um, rng)
        return expose(light, depth_um, self._recipe, self._camera, self._exposures[place], self._corners, rng)


def _drift(rng: np.random.Generator, recipe: Recipe, n_slices: int) -> NDArray[np.intp]:
    """[n, 2] place of the field on the tissue grid: a random walk held inside the margin."""
    walk = np.cumsum(rng.normal(0, 1, (n_slices, 2)) * recipe.drift_um, axis=0)
    jumps = rng.uniform(size=n_slices) < 0.02
    walk += np.cumsum(jumps[:, None] * rng.normal(0, 6, (n_slices, 2)), axis=0)
    folded = np.abs((walk + DRIFT_MARGIN_UM) % (4 * DRIFT_MARGIN_UM) - 2 * DRIFT_MARGIN_UM)
    return np.clip(np.rint(folded), 0, 2 * DRIFT_MARGIN_UM).astype(np.intp)


def _exposures(rng: np.random.Generator, recipe: Recipe, n_slices: int) -> tuple[Exposure, ...]:
    """Gain of each slice (a slow walk with steps where the operator turns the knob) and motion."""
    steps = np.where(
        rng.uniform(size=n_slices) < 0.12, rng.normal(0, 0.1, n_slices), rng.normal(0, 0.015, n_slices)
    )
    walk = np.zeros(n_slices)
    for k in range(1, n_slices):
        walk[k] = 0.93 * walk[k - 1] + steps[k]
    motion = rng.uniform(size=n_slices) < recipe.motion_share
    return tuple(
        Exposure(gain=float(np.clip(np.exp(g), 0.75, 1.3)), sheared=bool(m))
        for g, m in zip(walk, motion, strict=True)
    )


def _zero(rng: np.random.Generator, family: Family, start_um: float) -> float:
    """Where z = 0 lies, as the z of the mean skin surface."""
    if rng.uniform() < family.random_zero:
        return float(np.round(rng.uniform(-60, 60), 1))
    return -start_um if rng.uniform() < 0.6 else 0.0


def make_phantom(
    seed: int,
    *,
    shape: tuple[int, int] = (1000, 1000),
    pixel_size_um: float = 0.5,
    family: str | None = None,
    lesional: bool | None = None,
    z_step_um: float | None = None,
    patient_seed: int | None = None,
    stack_id: str | None = None,
) -> Phantom:
    """Build a phantom stack; nothing is rendered yet.

    Parameters
    ----------
    seed
        Non-negative; everything about the stack follows from it and the other arguments.
    shape, pixel_size_um
        Rows and columns of a slice, and their pitch. At least 32 um a side.
    family
        One of `FAMILIES`; None draws a training family.
    lesional
        None draws it (28 % are).
    z_step_um
        None draws from 1.5 to 5 um (mostly 3).
    patient_seed
        The same one makes stacks of one patient; None: a patient of its own.
    stack_id
        None: ``phantom-<seed>``.

    Raises
    ------
    KeyError
        For an unknown family.
    ValueError
        For a seed, shape, pitch or step out of range.
    """
    if seed < 0 or (patient_seed is not None and patient_seed < 0):
        raise ValueError(f"phantom seeds must be 0 or more, got {seed} and patient {patient_seed}")
    if not 0 < pixel_size_um < float("inf") or min(shape) * pixel_size_um < 32:
        raise ValueError(
            f"a phantom's field must be 32 um or wider, got {shape} pixels of {pixel_size_um} um"
        )
    if z_step_um is not None and not 0 < z_step_um < float("inf"):
        raise ValueError(f"a phantom's z step must be above 0 um, got {z_step_um}")
    camera = Camera(shape, pixel_size_um)
    patient_seed = seed if patient_seed is None else patient_seed
    patient = draw_patient(_stream(patient_seed, _PATIENT))

    rng = _stream(seed, _SITE)
    drawn_family, drawn_lesional = str(rng.choice(TRAINING_FAMILIES)), bool(rng.uniform() < LESIONAL_SHARE)
    chosen = FAMILIES[drawn_family if family is None else family]
    is_lesional = drawn_lesional if lesional is None else lesional
    site = str(rng.choice(SITES))
    recipe = draw_recipe(rng, chosen, patient, site, lesional=is_lesional)

    rows, columns = camera.field_um
    margin = DRIFT_MARGIN_UM
    extent_um = rows + 2 * margin, columns + 2 * margin
    tissue_rng = _stream(seed, _TISSUE)
    relief = build_relief(tissue_rng, recipe, extent_um)
    field_window = (slice(margin, margin + rows), slice(margin, margin + columns))
    truth = true_boundaries(relief.zone_top[field_window], relief.zone_bottom[field_window])

    rng = _stream(seed, _DEPTHS)
    start_um, step_um, n_slices = draw_depths(rng, truth, z_step_um)
    zero_um = _zero(rng, chosen, start_um)
    true_um = (truth[0] + zero_um, truth[1] + zero_um)
    difficulty = (1.35 if is_lesional else 1.0) * (0.85 + 0.5 * recipe.haze + 0.2 * recipe.blur_growth)
    rng = _stream(seed, _ACQUISITION)
    return Phantom(
        stack_id=f"phantom-{seed}" if stack_id is None else stack_id,
        patient=f"patient-{patient_seed}",
        site=site,
        family=chosen.name,
        lesional=is_lesional,
        seed=seed,
        shape=shape,
        pixel_size_um=pixel_size_um,
        z_step_um=step_um,
        z_um=start_um + zero_um + step_um * np.arange(n_slices, dtype=np.float64),
        true_boundaries_um=true_um,
        reader_boundaries_um=read_boundaries(_stream(seed, _READERS), true_um, difficulty),
        _z_zero_um=zero_um,
        _recipe=recipe,
        _relief=relief,
        _extent_um=extent_um,
        _tissue_rng=tissue_rng,
        _camera=camera,
        _corners=vignette(recipe, camera, rng),
        _drift_um=_drift(rng, recipe, n_slices),
        _exposures=_exposures(rng, recipe, n_slices),
    )
