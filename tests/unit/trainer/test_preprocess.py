from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.networks.preprocess import resize, standardise


def test_resize_is_an_area_weighted_triangle_filter() -> None:
    # Shrinking by 4, a triangle of half-width 4 input pixels; checked by hand for one output pixel.
    row = np.arange(40, dtype=np.float64) ** 2 % 97
    slices = torch.from_numpy(np.tile(row, (40, 1)).astype(np.float32)).unsqueeze(0)
    found = resize(slices, 10)[0, 5, 5].item()
    centre = 5.5 * 4
    weights = np.maximum(0, 1 - np.abs(np.arange(40) + 0.5 - centre) / 4)
    assert abs(found - (weights * row).sum() / weights.sum()) < 1e-3


@given(gain=st.floats(0.3, 3), offset=st.floats(-50, 50), seed=st.integers(0, 1000))
def test_standardised_slices_do_not_know_gain_and_offset(gain: float, offset: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    field = torch.rand((2, 16, 16), generator=generator) * 200
    once, again = standardise(field), standardise(field * gain + offset)
    np.testing.assert_allclose(once.numpy(), again.numpy(), atol=1e-3)
    assert once.shape == (2, 1, 16, 16)
    assert abs(once.mean().item()) < 1e-4


def test_an_even_slice_stays_finite() -> None:
    assert torch.equal(standardise(torch.full((1, 8, 8), 255.0)), torch.zeros(1, 1, 8, 8))
