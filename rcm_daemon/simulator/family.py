"""Families of tissue and optics: the ranges from which the parameters of one stack are drawn."""

from __future__ import annotations

from dataclasses import dataclass

SITES = ("forearm", "leg", "trunk", "back", "cheek")

SITE_THICKNESS = {"forearm": 0.95, "leg": 1.05, "trunk": 1.0, "back": 1.12, "cheek": 0.85}
"""Thickness of the epidermis relative to a patient's mean."""

SITE_RELIEF = {"forearm": 0.95, "leg": 1.0, "trunk": 1.1, "back": 1.15, "cheek": 0.75}
"""Height of the papillae relative to a patient's mean."""


@dataclass(frozen=True)
class Family:
    """One way of building tissue and of taking pictures of it; pairs are (low, high) of a uniform draw.

    Attributes
    ----------
    cells
        Constructions of the honeycomb: ``walls``, ``discs``, ``ridges``, ``facets``.
    rete
        Constructions of the junction's relief: ``domes``, ``network``, ``waves``, ``fingers``, ``crates``.
    collagen
        ``noise`` (filtered) or ``drawn`` fibres.
    cell_jitter
        Irregularity of the cell lattice, in spacings.
    wall_width_um, wall_strength, nucleus_strength
        Honeycomb borders and nuclei; the strengths are relative reflectances.
    basal_brightness
        Reflectance of the basal layer relative to the honeycomb's borders.
    corneum_brightness, collagen_brightness
        Relative reflectances of these layers.
    papilla_darkness
        Share of the light the superficial papilla lacks.
    cloudiness
        Strength of slow brightness variation across the field.
    blur_um, blur_growth
        Gaussian sigma at the surface, and its growth in um a 100 um of depth.
    haze, haze_growth
        Share of light that carries no detail at the surface, and its growth a 100 um.
    attenuation_um
        Depth over which the signal falls to 1/e.
    compensation
        Share of the brightness change with depth that the operator's gain takes back.
    mean_grey
        Mean grey level the operator aims at.
    contrast
        Standard deviation over mean at which the grey curve aims.
    speckle, speckle_grain_um
        SD of the multiplicative speckle and its sigma.
    shot_grey
        SD of the shot noise at grey 100, in grey levels of a 0.5 um pixel.
    black_grey
        Grey level of no light.
    corner
        Brightness of the corners relative to the centre.
    noise
        ``smooth`` speckle, or ``banded``: log-normal grains and brightness that jumps row by row.
    random_zero
        Share of the stacks whose zero of z is anywhere (otherwise the first slice or the skin surface).
    """

    name: str
    cells: tuple[str, ...]
    rete: tuple[str, ...]
    collagen: tuple[str, ...]
    cell_jitter: tuple[float, float] = (0.2, 0.45)
    wall_width_um: tuple[float, float] = (1.0, 2.4)
    wall_strength: tuple[float, float] = (0.25, 0.8)
    nucleus_strength: tuple[float, float] = (0.0, 0.8)
    basal_brightness: tuple[float, float] = (0.3, 1.5)
    corneum_brightness: tuple[float, float] = (0.5, 1.3)
    collagen_brightness: tuple[float, float] = (0.4, 1.1)
    papilla_darkness: tuple[float, float] = (0.0, 0.6)
    cloudiness: tuple[float, float] = (0.1, 0.35)
    blur_um: tuple[float, float] = (0.3, 0.8)
    blur_growth: tuple[float, float] = (0.3, 1.4)
    haze: tuple[float, float] = (0.0, 0.15)
    haze_growth: tuple[float, float] = (0.1, 0.4)
    attenuation_um: tuple[float, float] = (60.0, 160.0)
    compensation: tuple[float, float] = (0.7, 1.0)
    mean_grey: tuple[float, float] = (75.0, 108.0)
    contrast: tuple[float, float] = (0.4, 0.62)
    speckle: tuple[float, float] = (0.1, 0.3)
    speckle_grain_um: tuple[float, float] = (0.35, 0.6)
    shot_grey: tuple[float, float] = (14.0, 24.0)
    black_grey: tuple[float, float] = (4.0, 20.0)
    corner: tuple[float, float] = (0.45, 0.92)
    noise: str = "smooth"
    random_zero: float = 0.3


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("classic", cells=("walls",), rete=("domes",), collagen=("noise",)),
        Family(
            "meshed",
            cells=("walls", "ridges"),
            rete=("network",),
            collagen=("noise", "drawn"),
            wall_width_um=(1.4, 3.0),
            basal_brightness=(0.2, 1.1),
            papilla_darkness=(0.1, 0.7),
            contrast=(0.4, 0.6),
        ),
        Family(
            "pale",
            cells=("discs", "walls"),
            rete=("domes", "waves"),
            collagen=("noise",),
            basal_brightness=(0.15, 0.7),
            collagen_brightness=(0.6, 1.3),
            haze=(0.05, 0.25),
            speckle=(0.15, 0.35),
            compensation=(0.5, 0.9),
        ),
        Family(
            "ribbed",
            cells=("ridges", "discs"),
            rete=("fingers", "network"),
            collagen=("noise", "drawn"),
            cell_jitter=(0.3, 0.5),
            corneum_brightness=(0.3, 0.9),
            blur_um=(0.5, 1.1),
            shot_grey=(15.0, 26.0),
            random_zero=0.6,
        ),
        Family(
            "vivid",
            cells=("walls", "discs"),
            rete=("waves", "domes", "network"),
            collagen=("drawn",),
            wall_strength=(0.5, 1.0),
            basal_brightness=(0.5, 1.9),
            attenuation_um=(90.0, 250.0),
            speckle=(0.06, 0.2),
            shot_grey=(14.0, 23.0),
            mean_grey=(70.0, 100.0),
            black_grey=(2.0, 14.0),
        ),
        Family(
            "foreign",
            cells=("facets",),
            rete=("crates",),
            collagen=("drawn", "noise"),
            cell_jitter=(0.25, 0.4),
            basal_brightness=(0.4, 1.5),
            blur_um=(0.4, 0.9),
            compensation=(0.85, 1.05),
            speckle=(0.1, 0.28),
            speckle_grain_um=(0.5, 0.8),
            contrast=(0.4, 0.6),
            noise="banded",
            random_zero=0.5,
        ),
    )
}

HELD_OUT_FAMILY = "foreign"
"""Never drawn for training: a standing test of transfer to tissue and optics built in another way."""

TRAINING_FAMILIES: tuple[str, ...] = tuple(name for name in FAMILIES if name != HELD_OUT_FAMILY)
