"""How a worker process is started: which bundle, on what, and over which channel."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rcm_daemon.bundle.execution import SPIN_US
from rcm_daemon.core.rhythm import REHEARSAL_SHARE

if TYPE_CHECKING:
    from rcm_daemon.bundle.execution import ProviderChoice, VariantChoice


@dataclass(frozen=True)
class Launch:
    """What one bundle's workers are given.

    Attributes
    ----------
    folder
        Of the bundle.
    provider, variant, n_threads, spin_us
        How its CNN is run, as in `Execution`.
    digest
        What the bundle there must have, or one of its variants; empty = whatever it has.
    checked
        Whether golden vectors must come out right before the bundle is served.
    public_key
        Key the bundle must be signed with (Ed25519, 64 hexadecimal digits); empty = none needed.
    rehearsal_share
        Share of the time between two slices that is spent on rehearsing, 0 = none.
    """

    folder: str
    provider: ProviderChoice = "auto"
    n_threads: int = 0
    digest: str = ""
    checked: bool = False
    public_key: str = ""
    variant: VariantChoice = "auto"
    spin_us: int = SPIN_US
    rehearsal_share: float = REHEARSAL_SHARE

    def to_argument(self) -> str:
        """Write as one word of a command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_argument(cls, argument: str) -> Launch:
        """Read what `to_argument` wrote."""
        return cls(**json.loads(argument))
