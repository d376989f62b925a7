"""A received slice to its embedding: one CNN run, with what is to be known of the picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rcm_daemon.bundle.field import to_field
from rcm_daemon.core.quality import quality_flags
from rcm_daemon.core.stack import EmbeddedSlice

if TYPE_CHECKING:
    from rcm_daemon.bundle.sessions import Networks
    from rcm_daemon.core.records import Slice


def embed_slice(networks: Networks, received: Slice) -> EmbeddedSlice:
    """Bring a slice to the bundle's field and run the CNN on it once.

    Raises
    ------
    InferenceError
        The slice cannot be brought to the field, or its embedding is unusable.
    """
    header = received.header
    wanted = networks.manifest.input
    field, flags = to_field(
        received.pixels, header.pixel_size_um, header.max_value, wanted.shape, wanted.pixel_size_um
    )
    embedding = networks.embed(field, f"slice {header.index} of {header.stack_id!a}")
    return EmbeddedSlice(header.index, header.z_um, embedding, flags=(*quality_flags(field), *flags))
