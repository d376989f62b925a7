"""A received slice to its embedding: one CNN run, with what is to be known of the picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rcm_daemon.bundle.field import to_field
from rcm_daemon.bundle.picture import quality_flags
from rcm_daemon.core.quality import weight_of
from rcm_daemon.core.stack import EmbeddedSlice

if TYPE_CHECKING:
    import numpy.typing as npt

    from rcm_daemon.bundle.sessions import Networks
    from rcm_daemon.core.records import Slice


def embed_slice(
    networks: Networks, received: Slice, neighbours: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None = None
) -> EmbeddedSlice:
    """Bring a slice to the bundle's field and run the CNN on it once.

    Parameters
    ----------
    neighbours
        Pixels of the slices above and below, of the same kind, where the bundle's CNN sees them too.

    Raises
    ------
    InferenceError
        The slice cannot be brought to the field, or its embedding is unusable.
    """
    header = received.header
    wanted = networks.manifest.input

    def field_of(pixels: npt.NDArray[Any]) -> tuple[npt.NDArray[np.uint8], tuple[str, ...]]:
        return to_field(pixels, header.pixel_size_um, header.max_value, wanted.shape, wanted.pixel_size_um)

    field, flags = field_of(received.pixels)
    flags = (
        *quality_flags(field, networks.domain),
        *flags,
    )  # before the CNN, while the pixels are in the cache
    image = field
    if neighbours is not None:
        above, below = (field_of(pixels)[0] for pixels in neighbours)
        image = np.stack([above, field, below])
    embedding = networks.embed(image, f"slice {header.index}")
    return EmbeddedSlice(header.index, header.z_um, embedding, weight_of(flags), flags)
