"""The one definition of what happens to a slice before the first convolution.

A slice reaches the network as uint8 at the bundle's field (1000 x 1000 at 0.5 um, `rcm_daemon.bundle.field`).
Two steps follow, both inside the exported graph, so that trainer and daemon cannot differ:

1. an antialiased linear resize to S x S, in float, values still 0..255 (`resize`);
2. standardisation of every slice by its own mean and standard deviation (`standardise`).

Step 2 is per slice on purpose: laser power and detector gain are set by hand for every stack, so absolute
brightness says more about the instrument than about the stratum, and a network that never sees it transfers
better to another instrument (or another simulator).

Both take slices [B, ...], or each slice with its neighbours above and below as channels [B, 3, ...].

Shapes: B slices, R rows, C columns, S side of the network's input.
"""

from __future__ import annotations

import torch  # noqa: TC002
from torch.nn import functional

STANDARD_DEVIATION_FLOOR = 4.0
"""Grey levels; keeps an empty slice (all one grey) from being blown up to noise."""


def resize(slices_BRC: torch.Tensor, size: int) -> torch.Tensor:
    """Resize slices to `size` x `size` with an antialiased linear filter.

    Parameters
    ----------
    slices_BRC
        uint8 or float slices, grey levels 0..255.
    size
        Side S of the network's input, in pixels.

    Returns
    -------
    torch.Tensor
        float32 [B, S, S] (or [B, 3, S, S]), grey levels 0..255. The exported graph does the same with the
        ONNX operator Resize (linear, half_pixel, antialias=1, exclude_outside=1).
    """
    alone = slices_BRC.ndim == 3
    images = slices_BRC.unsqueeze(1) if alone else slices_BRC
    resized = functional.interpolate(
        images.float(), size=(size, size), mode="bilinear", align_corners=False, antialias=True
    )
    return resized.squeeze(1) if alone else resized


def standardise(field_BSS: torch.Tensor) -> torch.Tensor:
    """Shift and scale every slice to mean 0 and standard deviation 1.

    Parameters
    ----------
    field_BSS
        float slices, grey levels 0..255.

    Returns
    -------
    torch.Tensor
        float32 [B, 1, S, S] (or [B, 3, S, S]), ready for the first convolution.
    """
    field_B1SS = (field_BSS.unsqueeze(1) if field_BSS.ndim == 3 else field_BSS).float()
    centred_B1SS = field_B1SS - field_B1SS.mean(dim=(2, 3), keepdim=True)
    deviation_B111 = (centred_B1SS * centred_B1SS).mean(dim=(2, 3), keepdim=True).sqrt()
    return centred_B1SS / deviation_B111.clamp(min=STANDARD_DEVIATION_FLOOR)
