"""What the pictures of a data set look like: the ranges a bundle holds new pictures against."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rcm_daemon.bundle.picture import picture_statistics
from rcm_daemon.core.quality import PictureDomain, PictureStatistics
from rcm_daemon.errors import DataSetError
from trainer.data.prepared import fields_of_stack
from trainer.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainer.data.manifest import LabelledStack

EVERY = 4
"""Of a stack's slices every fourth is measured: neighbours look alike."""
EDGE = 0.001
MARGIN = 0.5
"""A range is wider on both sides by this share of its width: another gain is no foreign domain."""
FEWEST_PICTURES = 50


def picture_domain(stacks: Sequence[LabelledStack]) -> PictureDomain:
    """Measure slices of stacks.

    Raises
    ------
    DataSetError
        If there are too few slices.
    """
    measured: list[PictureStatistics] = []
    with progress_bar("measuring pictures", len(stacks), "stacks") as advance:
        for stack in stacks:
            for number, field in enumerate(fields_of_stack(stack)):
                if number % EVERY == 0:
                    measured.append(picture_statistics(field))
            advance(1, "")
    return domain_of(measured)


def domain_of(measured: Sequence[PictureStatistics]) -> PictureDomain:
    """Give the range of each statistic: 0.1 % to 99.9 % point, and half that width more on both sides.

    Raises
    ------
    DataSetError
        If there are too few pictures.
    """
    if len(measured) < FEWEST_PICTURES:
        raise DataSetError(
            f"ranges of picture statistics need {FEWEST_PICTURES} pictures or more, got {len(measured)}"
        )
    low, high = np.quantile(np.array(measured), [EDGE, 1 - EDGE], axis=0)
    margin = MARGIN * (high - low)
    ranges = zip(PictureStatistics._fields, (low - margin).tolist(), (high + margin).tolist(), strict=True)
    return PictureDomain.model_validate({name: (round(a, 4), round(b, 4)) for name, a, b in ranges})
