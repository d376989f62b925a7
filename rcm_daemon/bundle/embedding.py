"""A received slice to its embedding: one CNN run, with what is to be known of the picture."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class PreparedSlice:
    """A slice ready for the CNN: uint8 of the manifest's `cnn_shape`, and the flags its picture earned."""

    index: int
    z_um: float
    image: npt.NDArray[np.uint8]
    flags: tuple[str, ...]


def prepare_slice(
    networks: Networks, received: Slice, neighbours: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None = None
) -> PreparedSlice:
    """Bring a slice to the bundle's field and look at its picture; no network is run.

    Parameters
    ----------
    neighbours
        Pixels of the slices above and below, of the same kind, where the bundle's CNN sees them too.

    Raises
    ------
    InferenceError
        The slice cannot be brought to the field.
    """
    header = received.header
    wanted = networks.manifest.input

    def field_of(pixels: npt.NDArray[Any]) -> tuple[npt.NDArray[np.uint8], tuple[str, ...]]:
        return to_field(pixels, header.pixel_size_um, header.max_value, wanted.shape, wanted.pixel_size_um)

    field, flags = field_of(received.pixels)
    flags = (*quality_flags(field, networks.domain), *flags)
    image = field
    if neighbours is not None:
        above, below = (field_of(pixels)[0] for pixels in neighbours)
        image = np.stack([above, field, below])
    return PreparedSlice(header.index, header.z_um, image, flags)


def embed_prepared(networks: Networks, prepared: PreparedSlice) -> EmbeddedSlice:
    """Run the CNN once.

    Raises
    ------
    InferenceError
        The embedding is unusable.
    """
    embedding = networks.embed(prepared.image, f"slice {prepared.index}")
    weight = weight_of(prepared.flags)
    return EmbeddedSlice(prepared.index, prepared.z_um, embedding, weight, prepared.flags)


def embed_slice(networks: Networks, received: Slice) -> EmbeddedSlice:
    """Prepare a slice and embed it, while its pixels are in the cache.

    Raises
    ------
    InferenceError
        As of both.
    """
    return embed_prepared(networks, prepare_slice(networks, received))
