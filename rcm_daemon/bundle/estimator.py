"""estimator.json of a bundle: what the monotone estimator was fitted to; a bundle may do without."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import ValidationError

from rcm_daemon.bundle.manifest import ESTIMATOR_FILE
from rcm_daemon.core.estimator import EstimatorParameters
from rcm_daemon.core.pipeline import Estimation
from rcm_daemon.errors import BundleError

if TYPE_CHECKING:
    from rcm_daemon.bundle.sessions import Networks
    from rcm_daemon.bundle.verify import VerifiedBundle
    from rcm_daemon.core.mosaic import MosaicRule

EstimatorChoice = Literal["monotone", "paper"]


def estimator_parameters(bundle: VerifiedBundle) -> EstimatorParameters | None:
    """Read a bundle's estimator, None where it has none.

    Raises
    ------
    BundleError
        If the file breaks a rule.
    """
    content = bundle.files.get(ESTIMATOR_FILE)
    if content is None:
        return None
    try:
        return EstimatorParameters.model_validate_json(content)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(map(str, fault["loc"])) or "document"
        raise BundleError(
            f"{ESTIMATOR_FILE} must follow rcm-estimator-1, got a fault at {place} ({fault['msg']}) in "
            f"{bundle.folder}"
        ) from error


def estimation_of(networks: Networks, choice: EstimatorChoice, rule: MosaicRule) -> Estimation:
    """Choose how strata are read off a bundle: as the paper does where that is asked for or all there is."""
    return Estimation(networks.estimator_parameters if choice == "monotone" else None, rule)
