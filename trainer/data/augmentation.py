"""Random views of training slices: one affine warp, then what changes between instruments.

The warp is the paper's (shear, zoom, rotation, stretch, flips) in one resampling; brightness, contrast,
gamma, speckle, blur, noise and vignette are what reflectance confocal microscopes do differently from one
another. It all runs on whole batches in torch, on whatever device the batch lies, so it costs a small part of
a training step.

Shapes: B slices, S side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch.nn import functional

from rcm_daemon.errors import DataSetError

N_NOISE_FIELDS = 24
GRAINS_PX = (0.0, 0.0, 0.6, 1.0, 1.6)
"""Gaussian sigmas of the noise fields in turn: speckle has a grain, and every instrument another one."""
CLOUD_CELLS = 5
NOISE_MARGIN = 64
CPU_CHUNK = 8
PIVOT = 80.0
"""Grey level that a change of contrast leaves where it is: about the mean of real slices."""


@dataclass(frozen=True)
class Augmentation:
    """How far every kind of change goes; 0 switches one off.

    Attributes
    ----------
    rotation
        Largest angle in radians; pi means any.
    flip
        Probability of a mirror image.
    zoom, stretch
        Largest change of scale, and of the two axes against each other, as a share. Cell size tells depth, so
        zoom stays small.
    shear
        Largest shear, as a tangent.
    shift
        Largest shift as a share of the side (what it uncovers is mirrored in).
    gamma
        Largest change of the exponent of grey levels, as a natural logarithm.
    brightness, contrast
        Largest offset in grey levels, and largest natural logarithm of the gain (both saturate at 0 and 255).
    vignette
        Largest loss of light in the corners, as a share.
    clouds
        Largest deviation of a slow change of brightness across the field, as a natural logarithm.
    speckle
        Largest standard deviation of multiplicative noise.
    noise
        Largest standard deviation of additive noise in grey levels.
    blur
        Largest standard deviation of a Gaussian blur in pixels.
    """

    rotation: float = math.pi
    flip: float = 0.5
    zoom: float = 0.2
    stretch: float = 0.12
    shear: float = 0.12
    shift: float = 0.1
    gamma: float = 0.5
    brightness: float = 25.0
    contrast: float = 0.35
    vignette: float = 0.5
    clouds: float = 0.2
    speckle: float = 0.35
    noise: float = 12.0
    blur: float = 1.3

    def without(self, names: list[str]) -> Augmentation:
        """Switch the named kinds off.

        Raises
        ------
        DataSetError
            If a name is not a kind of augmentation.
        """
        known = [field.name for field in fields(self)]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise DataSetError(f"an augmentation must be one of {', '.join(known)}, got {', '.join(unknown)}")
        return replace(self, **dict.fromkeys(names, 0.0))


NO_AUGMENTATION = Augmentation(**{field.name: 0.0 for field in fields(Augmentation)})


class Augmenter:
    """Draws and applies augmentations; everything follows from its generator.

    Parameters
    ----------
    augmentation
        What to draw from.
    generator
        Source of randomness, on the CPU.
    """

    def __init__(self, augmentation: Augmentation, generator: torch.Generator) -> None:
        self.augmentation = augmentation
        self.generator = generator
        self._noise_NSS: torch.Tensor | None = None

    def __call__(self, slices_BSS: torch.Tensor) -> torch.Tensor:
        """Augment each slice on its own.

        Parameters
        ----------
        slices_BSS
            uint8 or float grey levels 0..255 on any device.

        Returns
        -------
        torch.Tensor
            float32 [B, S, S], grey levels 0..255.
        """
        return self._in_chunks(slices_BSS, self._draw(len(slices_BSS), slices_BSS.device))

    def with_neighbours(self, slices_BCSS: torch.Tensor) -> torch.Tensor:
        """Augment each slice and the neighbours it comes with alike, [B, 3, S, S]."""
        n_slices, n_channels = slices_BCSS.shape[:2]
        drawn = {
            name: value.repeat_interleave(n_channels, 0)
            for name, value in self._draw(n_slices, slices_BCSS.device).items()
        }
        return self._in_chunks(slices_BCSS.flatten(0, 1), drawn).view(slices_BCSS.shape)

    def same_for_all(self, slices_BSS: torch.Tensor) -> torch.Tensor:
        """Augment all slices alike, as another instrument would have recorded the same stack."""
        n_slices = len(slices_BSS)
        drawn = {
            name: value.expand(n_slices, *value.shape[1:])
            for name, value in self._draw(1, slices_BSS.device).items()
        }
        return self._in_chunks(slices_BSS, drawn)

    def _in_chunks(self, slices_BSS: torch.Tensor, drawn: dict[str, torch.Tensor]) -> torch.Tensor:
        # On a CPU a few slices at a time stay in its cache through all the steps: twice as quick.
        chunk = CPU_CHUNK if slices_BSS.device.type == "cpu" else len(slices_BSS)
        augmented_BSS = torch.empty(slices_BSS.shape, dtype=torch.float32, device=slices_BSS.device)
        for start in range(0, len(slices_BSS), chunk):
            part = slice(start, start + chunk)
            augmented_BSS[part] = self._apply(
                slices_BSS[part], {name: value[part] for name, value in drawn.items()}
            )
        return augmented_BSS

    def _uniform(self, n_slices: int, device: torch.device) -> torch.Tensor:
        return (torch.rand(n_slices, generator=self.generator) * 2 - 1).to(device)

    def _draw(self, n_slices: int, device: torch.device) -> dict[str, torch.Tensor]:
        how = self.augmentation

        def spread(largest: float) -> torch.Tensor:
            return self._uniform(n_slices, device) * largest

        angle, shear = spread(how.rotation), spread(how.shear)
        mirror = torch.where(self._uniform(n_slices, device) < 2 * how.flip - 1, -1.0, 1.0)
        zoom = torch.exp(spread(math.log1p(how.zoom)))
        stretch = torch.exp(spread(math.log1p(how.stretch) / 2))
        cos, sin = torch.cos(angle), torch.sin(angle)
        rotation_B22 = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
        zero = torch.zeros_like(angle)
        scale_B22 = torch.stack(
            [torch.stack([zoom * stretch * mirror, shear], 1), torch.stack([zero, zoom / stretch], 1)], 1
        )
        # A second angle, so that stretch and shear point anywhere.
        tilt = spread(how.rotation)
        tilt_B22 = torch.stack(
            [torch.stack([tilt.cos(), -tilt.sin()], 1), torch.stack([tilt.sin(), tilt.cos()], 1)], 1
        )
        shift_B21 = torch.stack([spread(2 * how.shift), spread(2 * how.shift)], 1).unsqueeze(2)
        return {
            "affine": torch.cat([rotation_B22 @ scale_B22 @ tilt_B22, shift_B21], 2),
            "gamma": torch.exp(spread(how.gamma)),
            "gain": torch.exp(spread(how.contrast)),
            "offset": spread(how.brightness),
            "vignette": spread(how.vignette).clamp(min=0),
            "centre": torch.stack([spread(0.3), spread(0.3)], 1),
            "clouds": self._clouds(n_slices).to(device) * spread(how.clouds).view(-1, 1, 1),
            "speckle": spread(how.speckle).clamp(min=0),
            "noise": spread(how.noise).clamp(min=0),
            "blur": spread(how.blur).clamp(min=0),
        }

    def _apply(self, slices_BSS: torch.Tensor, drawn: dict[str, torch.Tensor]) -> torch.Tensor:
        how = self.augmentation
        x_BSS = slices_BSS.to(torch.float32, copy=True)
        if how.rotation or how.zoom or how.stretch or how.shear or how.shift or how.flip:
            side = x_BSS.shape[1]
            grid = _affine_grid(drawn["affine"], side)
            x_BSS = functional.grid_sample(
                x_BSS.unsqueeze(1), grid, mode="bilinear", padding_mode="reflection", align_corners=False
            ).squeeze(1)
        if how.blur:
            x_BSS = _blur(x_BSS, drawn["blur"])
        if how.vignette:
            x_BSS *= _vignette(x_BSS, drawn["vignette"], drawn["centre"])
        if how.clouds:
            x_BSS *= torch.exp(_stretched(drawn["clouds"], x_BSS.shape[1]))
        if how.gamma:
            x_BSS = x_BSS.mul_(1 / 255).clamp_(min=1e-6).pow_(_column(drawn["gamma"])).mul_(255)
        if how.speckle or how.noise:
            x_BSS.addcmul_(x_BSS * self._noise(x_BSS), _column(drawn["speckle"]))
            x_BSS.addcmul_(self._noise(x_BSS), _column(drawn["noise"]))
        if how.contrast or how.brightness:
            x_BSS = x_BSS.sub_(PIVOT).mul_(_column(drawn["gain"])).add_(_column(drawn["offset"] + PIVOT))
        return x_BSS.clamp_(0, 255)

    def _clouds(self, n_slices: int) -> torch.Tensor:
        return torch.randn(n_slices, CLOUD_CELLS, CLOUD_CELLS, generator=self.generator)

    def _noise(self, x_BSS: torch.Tensor) -> torch.Tensor:
        # Drawing fresh Gaussian noise costs as much as the warp: take shifted views of a bank drawn once.
        n_slices, side, _ = x_BSS.shape
        if self._noise_NSS is None or self._noise_NSS.shape[1] != side + NOISE_MARGIN:
            shape = (N_NOISE_FIELDS, side + NOISE_MARGIN, side + NOISE_MARGIN)
            self._noise_NSS = _grained(torch.randn(shape, generator=self.generator)).to(x_BSS.device)
        row, column = torch.randint(NOISE_MARGIN, (2,), generator=self.generator).tolist()
        which = torch.randint(N_NOISE_FIELDS, (n_slices,), generator=self.generator).to(x_BSS.device)
        return self._noise_NSS[:, row : row + side, column : column + side][which]


def _grained(noise_NSS: torch.Tensor) -> torch.Tensor:
    """Blur white fields by `GRAINS_PX` in turn; the coarser the grain, the weaker, or it buries the cells."""
    grains_N = torch.tensor(GRAINS_PX).repeat(-(-len(noise_NSS) // len(GRAINS_PX)))[: len(noise_NSS)]
    grained_NSS = _blur(noise_NSS, grains_N)
    return grained_NSS / (grained_NSS.std(dim=(1, 2)) * (1 + grains_N)).view(-1, 1, 1)


def _stretched(cells_BCC: torch.Tensor, side: int) -> torch.Tensor:
    """Draw a coarse grid of values out over [B, side, side], smoothly."""
    size = (side, side)
    return functional.interpolate(
        cells_BCC.unsqueeze(1), size=size, mode="bicubic", align_corners=False
    ).squeeze(1)


def _column(values_B: torch.Tensor) -> torch.Tensor:
    return values_B.view(-1, 1, 1)


def _affine_grid(affine_B23: torch.Tensor, side: int) -> torch.Tensor:
    # torch's affine_grid is a thin matrix product, ten times slower on a CPU than this outer sum.
    axis_S = (torch.arange(side, device=affine_B23.device) * 2 + 1) / side - 1
    row_B1S2 = axis_S.view(1, 1, -1, 1) * affine_B23[:, None, None, :, 0]
    column_BS12 = axis_S.view(1, -1, 1, 1) * affine_B23[:, None, None, :, 1]
    return row_B1S2 + (column_BS12 + affine_B23[:, None, None, :, 2])


def _blur(x_BSS: torch.Tensor, sigma_B: torch.Tensor) -> torch.Tensor:
    offsets = torch.arange(-3, 4, device=x_BSS.device, dtype=torch.float32)
    weights_B7 = torch.exp(-(offsets**2) / (2 * sigma_B.clamp(min=0.05).unsqueeze(1) ** 2))
    weights_B7 = weights_B7 / weights_B7.sum(1, keepdim=True)
    chosen = sigma_B > 0.3
    if not bool(chosen.any()):
        return x_BSS
    part, kernel = x_BSS[chosen], weights_B7[chosen]
    side = part.shape[1]
    padded = functional.pad(part.unsqueeze(0), (0, 0, 3, 3), mode="reflect").squeeze(0)
    rows = padded[:, :side] * _column(kernel[:, 0])
    for k in range(1, 7):
        rows.addcmul_(padded[:, k : k + side], _column(kernel[:, k]))
    padded = functional.pad(rows.unsqueeze(0), (3, 3, 0, 0), mode="reflect").squeeze(0)
    both = padded[:, :, :side] * _column(kernel[:, 0])
    for k in range(1, 7):
        both.addcmul_(padded[:, :, k : k + side], _column(kernel[:, k]))
    return x_BSS.index_put((chosen.nonzero().squeeze(1),), both)


def _vignette(x_BSS: torch.Tensor, strength_B: torch.Tensor, centre_B2: torch.Tensor) -> torch.Tensor:
    axis = torch.linspace(-1, 1, x_BSS.shape[1], device=x_BSS.device)
    row_BS = (axis - centre_B2[:, :1]) ** 2
    column_BS = (axis - centre_B2[:, 1:]) ** 2
    return 1 - _column(strength_B) * (row_BS.unsqueeze(2) + column_BS.unsqueeze(1)).clamp(max=2) / 2
