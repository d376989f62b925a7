"""The simulated microscope: phantom skin, its optics, and the strata its readers see."""

from __future__ import annotations

from rcm_daemon.simulator.family import FAMILIES, HELD_OUT_FAMILY, TRAINING_FAMILIES, Family
from rcm_daemon.simulator.labels import reader_agreement
from rcm_daemon.simulator.phantom import Phantom, make_phantom

__all__ = [
    "FAMILIES",
    "HELD_OUT_FAMILY",
    "TRAINING_FAMILIES",
    "Family",
    "Phantom",
    "make_phantom",
    "reader_agreement",
]
