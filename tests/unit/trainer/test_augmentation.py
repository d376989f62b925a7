from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from rcm_daemon.errors import DataSetError
from trainer.data.augmentation import NO_AUGMENTATION, Augmentation, Augmenter, _affine_grid


def field(n_slices: int = 4, side: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(20, 200, (n_slices, side, side), generator=generator, dtype=torch.uint8)


def augmenter(augmentation: Augmentation, seed: int = 0) -> Augmenter:
    return Augmenter(augmentation, torch.Generator().manual_seed(seed))


def test_all_switched_off_changes_nothing() -> None:
    assert torch.equal(augmenter(NO_AUGMENTATION)(field()), field().float())


@pytest.mark.parametrize("name", [one.name for one in fields(Augmentation)])
def test_every_kind_works_alone_and_stays_in_range(name: str) -> None:
    default = getattr(Augmentation(), name)
    alone = replace(NO_AUGMENTATION, **{name: default})
    once = augmenter(alone, 1)(field(16))
    assert once.dtype == torch.float32
    assert once.shape == (16, 64, 64)
    assert not torch.equal(once, field(16).float())
    assert once.min() >= 0
    assert once.max() <= 255
    assert torch.equal(once, augmenter(alone, 1)(field(16)))
    assert not torch.equal(once, augmenter(alone, 2)(field(16)))
    assert getattr(Augmentation().without([name]), name) == 0


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(DataSetError, match="got sparkle"):
        Augmentation().without(["sparkle"])


def test_flip_alone_mirrors_about_half_of_the_slices() -> None:
    slices = field(200, 8)
    flipped = augmenter(replace(NO_AUGMENTATION, flip=0.5))(slices)
    mirrored = [torch.allclose(a, b.float().flip(1), atol=1e-2) for a, b in zip(flipped, slices, strict=True)]
    same = [torch.allclose(a, b.float(), atol=1e-2) for a, b in zip(flipped, slices, strict=True)]
    assert sum(mirrored) + sum(same) == 200
    assert 70 < sum(mirrored) < 130


def test_rotation_turns_about_the_centre_and_mirrors_the_corners_in() -> None:
    disc = torch.zeros(8, 65, 65)
    rows, columns = torch.meshgrid(torch.arange(65), torch.arange(65), indexing="ij")
    disc[:, (rows - 32) ** 2 + (columns - 32) ** 2 < 20**2] = 200
    turned = augmenter(replace(NO_AUGMENTATION, rotation=math.pi))(disc)
    assert (turned - disc).abs().mean() < 6
    bright = augmenter(replace(NO_AUGMENTATION, rotation=math.pi))(torch.full((8, 65, 65), 100.0))
    np.testing.assert_allclose(bright.numpy(), 100, atol=1e-3)


def test_the_grid_is_torchs() -> None:
    affine = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(1))
    expected = torch.nn.functional.affine_grid(affine, [3, 1, 9, 9], align_corners=False)
    np.testing.assert_allclose(_affine_grid(affine, 9).numpy(), expected.numpy(), atol=1e-5)


def test_blur_keeps_the_mean_and_lowers_the_deviation() -> None:
    blurred = augmenter(replace(NO_AUGMENTATION, blur=2.0), 3)(field(12))
    before, after = field(12).float().std(dim=(1, 2)), blurred.std(dim=(1, 2))
    assert (after <= before + 1e-3).all()
    assert (after < 0.7 * before).any()
    np.testing.assert_allclose(blurred.mean(dim=(1, 2)), field(12).float().mean(dim=(1, 2)), atol=2)


def test_one_augmentation_for_a_whole_stack() -> None:
    alone = replace(NO_AUGMENTATION, rotation=math.pi, gamma=0.3, brightness=20.0)
    same = augmenter(alone).same_for_all(field(1).repeat(5, 1, 1))
    assert all(torch.equal(same[0], other) for other in same[1:])
    own = augmenter(alone)(field(1).repeat(5, 1, 1))
    assert not torch.equal(own[0], own[1])
