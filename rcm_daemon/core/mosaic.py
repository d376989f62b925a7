"""Five depths at which mosaics are taken, from the two boundaries.

Bozkurt et al. 2021 name what clinicians look at: stratum spinosum including the basal layer, upper, middle
and lower DEJ, papillary dermis. Where in each the picture is best taken is not said; the rule here is ours,
and a setting.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from rcm_daemon.core.records import MosaicDepth

Place = tuple[float, float, float]
"""Depth in um, and the ends of its interval."""

MOSAICS = ("spinosum", "upper_dej", "middle_dej", "lower_dej", "papillary_dermis")


class MosaicRule(BaseModel):
    """Where the five mosaics are taken.

    Attributes
    ----------
    above_um
        `spinosum` is taken so far above epidermis-DEJ, so that the basal layer is in the picture.
    shares
        `upper_dej`, `middle_dej`, `lower_dej`: share of the way from epidermis-DEJ to DEJ-dermis.
    below_um
        `papillary_dermis` is taken so far below DEJ-dermis.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    above_um: Annotated[float, Field(ge=0, le=100)] = 6.0
    shares: tuple[
        Annotated[float, Field(ge=0, le=1)],
        Annotated[float, Field(ge=0, le=1)],
        Annotated[float, Field(ge=0, le=1)],
    ] = (0.2, 0.5, 0.8)
    below_um: Annotated[float, Field(ge=0, le=100)] = 12.0


def mosaic_plan(first: Place | None, second: Place | None, rule: MosaicRule) -> tuple[MosaicDepth, ...]:
    """Give the depths with their intervals, in the order of `MOSAICS`: five if both boundaries have a place.

    The ends of an interval inside the junction are mixed as its depth is: exact where both boundaries are off
    in the same direction, and wider than need be where they are not.

    Parameters
    ----------
    first, second
        Where epidermis-DEJ and DEJ-dermis lie or are expected; none = above the stack, nobody knows where. A
        mosaic that such a boundary would place is left out.
    rule
        Where in each stratum.
    """
    places: dict[str, Place] = {}
    if first is not None:
        places[MOSAICS[0]] = (first[0] - rule.above_um, first[1] - rule.above_um, first[2] - rule.above_um)
    if first is not None and second is not None:
        for name, share in zip(MOSAICS[1:4], rule.shares, strict=True):
            um, low_um, high_um = (a + share * (b - a) for a, b in zip(first, second, strict=True))
            places[name] = um, low_um, high_um
    if second is not None:
        places[MOSAICS[4]] = (second[0] + rule.below_um, second[1] + rule.below_um, second[2] + rule.below_um)
    return tuple(MosaicDepth(name, *place) for name, place in places.items())
