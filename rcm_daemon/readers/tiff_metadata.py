"""What ImageJ's and OME's descriptions and TIFF's resolution tags say: number of planes, spacing, pitch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from rcm_daemon.errors import StackFileError
from rcm_daemon.readers.scale import StatedScale, evenly_spaced
from rcm_daemon.readers.units import um_per_unit

if TYPE_CHECKING:
    from pathlib import Path

_MAX_XML = 16 << 20
_INCH_UM, _CM_UM = 25_400.0, 10_000.0


def n_planes_declared(tif: Any, path: Path) -> int:
    """Pages the description promises, over all series; 0 where it promises none."""
    try:
        if tif.is_ome:
            images = ome_images(tif, path)
            return sum(_n_planes(pixels) for pixels in images)
        if tif.is_imagej:
            return int((tif.imagej_metadata or {}).get("images", 0))
        if tif.is_shaped:
            return sum(_n_shaped(entry["shape"], tif.pages.first) for entry in tif.shaped_metadata or ())
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StackFileError(f"the description of a TIFF must be readable, got {error} in {path}") from error
    return 0


def ome_images(tif: Any, path: Path) -> list[ElementTree.Element]:
    """Return the `Pixels` elements of the OME-XML, one a series.

    Raises
    ------
    StackFileError
        Not well-formed, or its planes lie in other files too.
    """
    text = tif.ome_metadata or ""
    if len(text) > _MAX_XML or "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise StackFileError(
            f"OME-XML must be under {_MAX_XML} characters without a DTD, got other in {path}"
        )
    try:
        root = ElementTree.fromstring(text)  # noqa: S314  (entities were refused above)
    except ElementTree.ParseError as error:
        raise StackFileError(f"OME-XML must be well-formed, got {error} in {path}") from error
    files = {uuid.get("FileName") for uuid in root.iterfind(".//{*}TiffData/{*}UUID")} - {None, path.name}
    uuids = {(uuid.text or "").strip() for uuid in root.iterfind(".//{*}TiffData/{*}UUID")}
    # A renamed file still names its old self; several names or ids are several files.
    if len(files) > 1 or len(uuids) > 1 or (root.tag.endswith("}OME") and not _pixels(root)):
        raise StackFileError(f"an OME stack must lie in one file, got planes in other files in {path}")
    return _pixels(root)


def _pixels(root: ElementTree.Element) -> list[ElementTree.Element]:
    return list(root.iterfind("./{*}Image/{*}Pixels"))


def _n_planes(pixels: ElementTree.Element) -> int:
    samples = max((int(c.get("SamplesPerPixel", "1")) for c in pixels.iterfind("./{*}Channel")), default=1)
    z, c, t = (int(pixels.get(f"Size{axis}", "1")) for axis in "ZCT")
    return z * max(1, c // samples) * t


def _n_shaped(shape: list[int], page: Any) -> int:
    pixels = page.imagelength * page.imagewidth * page.samplesperpixel
    return max(1, math.prod(shape) // pixels) if pixels else 0


def stated_scale(tif: Any, series: Any, number: int, n_slices: int, path: Path) -> StatedScale:
    """Depths and pitch as the file states them, each None where it does not do so in a unit of length."""
    if tif.is_ome and series.kind == "ome":
        return _ome_scale(ome_images(tif, path)[number], n_slices)
    metadata = (tif.imagej_metadata or {}) if tif.is_imagej else {}
    unit = um_per_unit(metadata.get("unit"))
    x, y = (_resolution_um(series.keyframe, tag, unit) for tag in ("XResolution", "YResolution"))
    spacing = metadata.get("spacing")
    if unit is None or not isinstance(spacing, int | float) or not math.isfinite(spacing) or spacing == 0:
        return StatedScale(None, x, y)
    # A negative spacing is ImageJ's mark of a reversed stack: it rises towards the surface.
    return StatedScale(evenly_spaced(n_slices, spacing * unit), x, y)


def _resolution_um(page: Any, tag_name: str, imagej_unit_um: float | None) -> float | None:
    tag, unit_tag = page.tags.get(tag_name), page.tags.get("ResolutionUnit")
    if tag is None or not isinstance(tag.value, tuple) or len(tag.value) != 2 or 0 in tag.value:
        return None
    per_unit = tag.value[0] / tag.value[1]
    code = int(unit_tag.value) if unit_tag is not None else (1 if imagej_unit_um else 2)
    unit_um = {2: _INCH_UM, 3: _CM_UM}.get(code, imagej_unit_um)
    return None if unit_um is None else unit_um / per_unit


def _ome_scale(pixels: ElementTree.Element, n_slices: int) -> StatedScale:
    x, y, z = (_ome_length(pixels, f"PhysicalSize{axis}", "um") for axis in "XYZ")
    z_um = _plane_positions(pixels, n_slices)
    if z_um is None and z is not None and z > 0:
        z_um = evenly_spaced(n_slices, z)
    return StatedScale(z_um, x, y)


def _ome_length(element: ElementTree.Element, key: str, default_unit: str) -> float | None:
    value, unit = element.get(key), um_per_unit(element.get(key + "Unit", default_unit))
    if value is None or unit is None:
        return None
    try:
        length = float(value) * unit
    except ValueError:
        return None
    return length if math.isfinite(length) else None


def _plane_positions(pixels: ElementTree.Element, n_slices: int) -> tuple[float, ...] | None:
    # Without its unit attribute a position is in a "reference frame" of unknown unit (OME schema's default).
    found = {
        int(plane.get("TheZ", "-1")): _ome_length(plane, "PositionZ", "reference frame")
        for plane in pixels.iterfind("./{*}Plane")
    }
    depths = [found.get(i) for i in range(n_slices)]
    known = tuple(z for z in depths if z is not None)
    # Writers that know no position write 0 everywhere.
    return known if len(known) == n_slices and len(set(known)) == n_slices else None
