"""What a controller that can choose its next depth should do: go on, stop, or image one depth.

Apart from the estimate: nothing here changes what is said of the stack. The depth advised is the one where
the stratum is least certain (largest entropy of the posterior there) and no slice is near: a slice close to
another repeats it.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import numpy as np

from rcm_daemon.core.records import Advice

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rcm_daemon.core.posterior import BoundaryPosterior

FULL_GAIN_UM = 6.0
"""A slice this far from all others, two optical sections, repeats none of them: a boundary stays about this
uncertain whatever is imaged. On 170 validation and calibration stacks 0.41 of a sweep's slices were taken;
with 3 um here (and 45 um, 1.5 steps below) 0.58, and the boundaries lay no nearer to the readers'."""
LEAST_GAIN = 0.4
"""In nats: less is not worth a slice. The entropy at
a boundary is 0.69, so this is reached when it is sampled every 7 um."""
FARTHEST_UM = 30.0
"""No depth farther below the newest slice is advised."""
NEXT_STEPS = 1.0
"""A depth that lies no more than so many of the stack's steps ahead is what the sweep comes to anyway."""
SAME_PLACE_UM, MOST_TRIES = 1.5, 2
"""Where so many slices so near have shown nothing, another one is not asked for."""
ROUNDING_UM = 1e-6
"""Depths this close are one."""


def advise(
    posterior: BoundaryPosterior, trusted: NDArray[np.bool_], deepest_mosaic_um: float | None
) -> Advice:
    """Advise on a partial stack.

    There is no more to do once both boundaries lie inside the stack, no depth has anything to tell of them
    (with less to be gained anywhere than `LEAST_GAIN`, what lies 6 um below the newest slice is dermis with a
    probability of at least 0.86), and the deepest mosaic that is planned lies within what was imaged, or was
    tried in vain. How wide the intervals are, and which labels are settled, plays no part: what no further
    slice can tell is not waited for.

    Parameters
    ----------
    posterior
        Of both boundaries.
    trusted
        [n] which slices show tissue as it is. A depth that others were taken at is not imaged yet: it may be
        asked for once more.
    deepest_mosaic_um
        Where the deepest mosaic is planned; none = not both boundaries lie inside the stack.
    """
    taken = posterior.depths_um[: posterior.n_slices]
    imaged = taken if trusted.all() else taken[trusted]
    if len(imaged) == 0:
        return Advice("continue")
    deepest = float(taken[-1])
    between = (imaged[1:] + imaged[:-1]) / 2
    in_vain = taken[~trusted]
    ahead = posterior.depths_um[posterior.n_slices :]
    candidates = np.concatenate([between, ahead[ahead <= deepest + FARTHEST_UM]])
    first, second = (np.interp(candidates, posterior.depths_um, cdf) for cdf in posterior.cdf)
    strata = np.array([1 - first, first - second, second])
    np.maximum(strata, 1e-12, out=strata)
    strata *= np.log(strata)
    entropy = -strata.sum(axis=0)
    place = np.searchsorted(imaged, candidates)
    above = candidates - imaged[place - 1]
    below = np.where(place < len(imaged), imaged[np.minimum(place, len(imaged) - 1)] - candidates, np.inf)
    gain = entropy * np.minimum(np.minimum(above, below) / FULL_GAIN_UM, 1.0)
    if len(in_vain):
        tries = np.abs(candidates[:, None] - in_vain) < SAME_PLACE_UM
        gain[tries.sum(axis=1) >= MOST_TRIES] = 0.0
    best = int(np.argmax(gain))
    z_um = float(candidates[best])
    if gain[best] < LEAST_GAIN:
        if deepest_mosaic_um is None:
            return Advice("continue")
        n_tries = int((np.abs(deepest_mosaic_um - in_vain) < SAME_PLACE_UM).sum())
        if deepest_mosaic_um <= imaged[-1] + ROUNDING_UM or n_tries >= MOST_TRIES:
            return Advice("stop")
        z_um = min(deepest_mosaic_um, deepest + FARTHEST_UM)
    step_um = statistics.median((taken[1:] - taken[:-1]).tolist()) if len(taken) > 1 else FULL_GAIN_UM
    if 0 < z_um - deepest <= NEXT_STEPS * step_um + ROUNDING_UM:
        return Advice("continue")
    return Advice("acquire_at", z_um)
