"""Words for units of length, as microscopes and ImageJ write them."""

from __future__ import annotations

_UM_PER_UNIT = {
    "um": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "micrometer": 1.0,
    "micrometers": 1.0,
    "micrometre": 1.0,
    "micrometres": 1.0,
    "nm": 1e-3,
    "nanometer": 1e-3,
    "nanometre": 1e-3,
    "å": 1e-4,
    "angstrom": 1e-4,
    "mm": 1e3,
    "millimeter": 1e3,
    "millimetre": 1e3,
    "cm": 1e4,
    "centimeter": 1e4,
    "centimetre": 1e4,
    "m": 1e6,
    "meter": 1e6,
    "metre": 1e6,
    "inch": 25_400.0,
    "inches": 25_400.0,
    "in": 25_400.0,
    "mil": 25.4,
    "thou": 25.4,
}


def um_per_unit(word: object) -> float | None:
    """Um in one unit, or None where the word is no unit of length (`pixel`, `reference frame`, nothing).

    The micro sign and the Greek mu are the same, also where ImageJ escaped them as six characters.
    """
    if not isinstance(word, str):
        return None
    text = word.strip().strip('"')
    for micro in ("\\u00B5", "\\u00b5", "\\u03BC", "\\u03bc", "\u00b5", "\u03bc", "&micro;"):
        text = text.replace(micro, "u")
    return _UM_PER_UNIT.get(text.lower())
