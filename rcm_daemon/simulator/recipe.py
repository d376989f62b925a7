"""The parameters of one phantom stack, drawn from its patient, its site and its family."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rcm_daemon.simulator.family import SITE_RELIEF, SITE_THICKNESS, Family

LESIONAL_SHARE = 0.28
MURKY_SHARE = 0.35
"""Share of stacks with poor optical contact or scattering skin."""

SHORTEST_STACK, LONGEST_STACK = 15, 101
Z_STEPS_UM = (1.5, 2.0, 2.5, 3.0, 4.0, 5.0)
Z_STEP_SHARES = (0.05, 0.10, 0.10, 0.55, 0.12, 0.08)

PRESET_SHARE = 0.6
"""Share of stacks taken over a range set beforehand, whatever comes into view: their end says nothing of
where the junction lies. The others end where the operator has seen enough."""
PRESET_EXTENT_UM = (90.0, 180.0)


@dataclass(frozen=True)
class Patient:
    """What the sites of one patient share.

    Attributes
    ----------
    thickness, relief
        Factors on the thickness of the epidermis and the height of the papillae.
    pigment
        0 (fair) to 1 (dark): brightens the basal layer.
    cell_scale
        Factor on the sizes of cells.
    """

    thickness: float
    relief: float
    pigment: float
    cell_scale: float


def draw_patient(rng: np.random.Generator) -> Patient:
    """Draw a patient's skin."""
    return Patient(
        thickness=float(np.exp(rng.normal(0.0, 0.2))),
        relief=float(np.exp(rng.normal(0.0, 0.2))),
        pigment=float(rng.uniform()),
        cell_scale=float(rng.uniform(0.85, 1.15)),
    )


@dataclass(frozen=True)
class Recipe:
    """Every number one stack is made from; see `Family` for those that are drawn from its ranges."""

    lesional: bool
    cells: str
    rete: str
    collagen: str
    noise: str
    corneum_um: float
    tip_um: float
    relief_um: float
    papilla_um: float
    basal_um: float
    undulation_um: float
    tilt_um: float
    n_folds: int
    n_follicles: int
    n_dendritic: int
    n_nests: int
    n_pagetoid: int
    cell_scale: float
    cell_jitter: float
    wall_width_um: float
    wall_strength: float
    nucleus_strength: float
    basal_brightness: float
    corneum_brightness: float
    collagen_brightness: float
    papilla_darkness: float
    vessel_share: float
    cloudiness: float
    blur_um: float
    blur_growth: float
    haze: float
    haze_growth: float
    attenuation_um: float
    compensation: float
    mean_grey: float
    contrast: float
    speckle: float
    speckle_grain_um: float
    shot_grey: float
    black_grey: float
    corner: float
    drift_um: float
    motion_share: float


def draw_recipe(
    rng: np.random.Generator, family: Family, patient: Patient, site: str, *, lesional: bool
) -> Recipe:
    """Draw the parameters of one stack."""

    def draw(bounds: tuple[float, float]) -> float:
        return float(rng.uniform(*bounds))

    thickness = patient.thickness * SITE_THICKNESS[site]
    relief = 43.0 * patient.relief * SITE_RELIEF[site] * float(np.exp(rng.normal(0, 0.22)))
    if lesional:
        relief *= float(rng.uniform(0.45, 1.1))
    corneum = float(np.clip(rng.gamma(9.0, 1.5), 6.0, 30.0))
    murk = float(rng.uniform(0.4, 1.0)) if rng.uniform() < MURKY_SHARE else 0.0
    living = 50.0 * thickness * float(np.exp(rng.normal(0, 0.3)))
    return Recipe(
        lesional=lesional,
        cells=str(rng.choice(family.cells)),
        rete=str(rng.choice(family.rete)),
        collagen=str(rng.choice(family.collagen)),
        noise=family.noise,
        corneum_um=corneum,
        tip_um=corneum + float(np.clip(living, 16.0, 115.0)),
        relief_um=float(np.clip(relief, 12.0, 80.0)),
        papilla_um=float(rng.uniform(60.0, 130.0)),
        basal_um=float(rng.uniform(5.0, 11.0)),
        undulation_um=float(rng.uniform(3.0, 13.0)),
        tilt_um=float(rng.uniform(0.0, 28.0)),
        n_folds=int(rng.choice([0, 1, 2, 3], p=[0.35, 0.3, 0.2, 0.15])),
        n_follicles=int(rng.choice([0, 1, 2], p=[0.7, 0.22, 0.08])),
        n_dendritic=int(rng.poisson(6)) if rng.uniform() < (0.7 if lesional else 0.25) else 0,
        n_nests=int(rng.integers(2, 12)) if lesional and rng.uniform() < 0.7 else 0,
        n_pagetoid=int(rng.integers(4, 30)) if lesional and rng.uniform() < 0.6 else 0,
        cell_scale=patient.cell_scale * float(rng.uniform(0.9, 1.1)),
        cell_jitter=draw(family.cell_jitter) + (0.25 if lesional else 0.0),
        wall_width_um=draw(family.wall_width_um),
        wall_strength=draw(family.wall_strength) * (0.7 if lesional else 1.0),
        nucleus_strength=draw(family.nucleus_strength),
        basal_brightness=draw(family.basal_brightness) * (0.7 + 0.6 * patient.pigment),
        corneum_brightness=draw(family.corneum_brightness),
        collagen_brightness=draw(family.collagen_brightness),
        papilla_darkness=draw(family.papilla_darkness),
        vessel_share=float(rng.uniform(0.2, 0.9)),
        cloudiness=draw(family.cloudiness),
        blur_um=draw(family.blur_um),
        blur_growth=draw(family.blur_growth) + 0.9 * murk,
        haze=draw(family.haze) + 0.25 * murk,
        haze_growth=draw(family.haze_growth) + 0.2 * murk,
        attenuation_um=draw(family.attenuation_um),
        compensation=draw(family.compensation),
        mean_grey=draw(family.mean_grey),
        contrast=draw(family.contrast),
        speckle=draw(family.speckle),
        speckle_grain_um=draw(family.speckle_grain_um),
        shot_grey=draw(family.shot_grey) * (1 + 0.25 * murk),
        black_grey=draw(family.black_grey),
        corner=draw(family.corner),
        drift_um=float(rng.uniform(0.0, 1.6)),
        motion_share=float(rng.choice([0.0, 0.03, 0.1], p=[0.5, 0.35, 0.15])),
    )


def draw_depths(
    rng: np.random.Generator, boundaries_um: tuple[float, float], z_step_um: float | None
) -> tuple[float, float, int]:
    """Draw the depth of the first slice below the skin's mean surface, the step and the number of slices.

    Returns
    -------
    tuple
        First depth in um, step in um, number of slices (15 to 101).
    """
    step = float(rng.choice(Z_STEPS_UM, p=Z_STEP_SHARES)) if z_step_um is None else z_step_um
    first, second = boundaries_um
    start = float(rng.uniform(-12.0, 30.0))
    if rng.uniform() < 0.03:  # starts inside the junction
        start = first + float(rng.uniform(0.0, 0.6)) * (second - first)
    if rng.uniform() < PRESET_SHARE:
        last = start + float(rng.uniform(*PRESET_EXTENT_UM))
    elif rng.uniform() < 0.05:  # given up before the dermis
        last = first + float(rng.uniform(-0.3, 1.0)) * (second - first)
    else:
        last = second + 2.0 + float(rng.exponential(26.0))
    n_slices = int(np.clip(round((last - start) / step) + 1, SHORTEST_STACK, LONGEST_STACK))
    return start, step, n_slices
