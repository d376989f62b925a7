"""Inception-V3 for single-channel slices, with the extra 256-value layer of Bozkurt et al. 2021.

Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016. Parameter names and shapes
are torchvision's at width 1, so that its ImageNet weights load from a file; `width` scales every channel
count.

The paper's IV3-Context is the same network over three channels: a slice between its neighbours. At the ends
of a stack the slice itself stands in for the neighbour that is not there.

Shapes: B slices, S side of the input, H/W rows and columns of a feature map, F pooled features (2048 at width
1), E embedding values (256), K classes (3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from rcm_daemon.core.records import BOUNDARIES
from rcm_daemon.errors import DataSetError
from trainer.networks.preprocess import resize, standardise
from trainer.torch_file import read_torch_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

EMBEDDING_SIZE = 256
N_CLASSES = 3
SMALLEST_INPUT = 75
"""Pixels; below it Inception-V3's last blocks have nothing left to convolve."""


def scaled(n_channels: int, width: float) -> int:
    """Round `n_channels * width` to a multiple of 8, at least 8 (what vector units like)."""
    return n_channels if width == 1 else max(8, round(n_channels * width / 8) * 8)


class BasicConv2d(nn.Module):
    """Convolution without bias, batch norm (eps 0.001), ReLU: torchvision's block of that name."""

    def __init__(self, n_in: int, n_out: int, **convolution: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, bias=False, **convolution)
        self.bn = nn.BatchNorm2d(n_out, eps=0.001)
        self.n_out = n_out

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Map [B, C, H, W] to [B, n_out, H', W'], non-negative."""
        return functional.relu(self.bn(self.conv(x_BCHW)), inplace=True)


class InceptionA(nn.Module):
    """Figure 5 of the Inception-V3 paper: 1x1, 5x5, double 3x3 and pooled branches."""

    def __init__(self, n_in: int, n_pool: int, width: float) -> None:
        super().__init__()
        c64, c48, c96 = scaled(64, width), scaled(48, width), scaled(96, width)
        self.branch1x1 = BasicConv2d(n_in, c64, kernel_size=1)
        self.branch5x5_1 = BasicConv2d(n_in, c48, kernel_size=1)
        self.branch5x5_2 = BasicConv2d(c48, c64, kernel_size=5, padding=2)
        self.branch3x3dbl_1 = BasicConv2d(n_in, c64, kernel_size=1)
        self.branch3x3dbl_2 = BasicConv2d(c64, c96, kernel_size=3, padding=1)
        self.branch3x3dbl_3 = BasicConv2d(c96, c96, kernel_size=3, padding=1)
        self.branch_pool = BasicConv2d(n_in, scaled(n_pool, width), kernel_size=1)
        self.n_out = c64 + c64 + c96 + self.branch_pool.n_out

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Map [B, C, H, W] to [B, n_out, H, W]."""
        pooled = functional.avg_pool2d(x_BCHW, kernel_size=3, stride=1, padding=1)
        return torch.cat(
            [
                self.branch1x1(x_BCHW),
                self.branch5x5_2(self.branch5x5_1(x_BCHW)),
                self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x_BCHW))),
                self.branch_pool(pooled),
            ],
            1,
        )


class InceptionB(nn.Module):
    """Grid reduction 35 -> 17 (at 299 pixels)."""

    def __init__(self, n_in: int, width: float) -> None:
        super().__init__()
        c64, c96 = scaled(64, width), scaled(96, width)
        self.branch3x3 = BasicConv2d(n_in, scaled(384, width), kernel_size=3, stride=2)
        self.branch3x3dbl_1 = BasicConv2d(n_in, c64, kernel_size=1)
        self.branch3x3dbl_2 = BasicConv2d(c64, c96, kernel_size=3, padding=1)
        self.branch3x3dbl_3 = BasicConv2d(c96, c96, kernel_size=3, stride=2)
        self.n_out = self.branch3x3.n_out + c96 + n_in

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Map [B, C, H, W] to [B, n_out, H/2, W/2]."""
        return torch.cat(
            [
                self.branch3x3(x_BCHW),
                self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x_BCHW))),
                functional.max_pool2d(x_BCHW, kernel_size=3, stride=2),
            ],
            1,
        )


class InceptionC(nn.Module):
    """Figure 6: factorised 7x7 branches."""

    def __init__(self, n_in: int, n_7x7: int, width: float) -> None:
        super().__init__()
        c7, c192 = scaled(n_7x7, width), scaled(192, width)
        row: dict[str, Any] = {"kernel_size": (1, 7), "padding": (0, 3)}
        column: dict[str, Any] = {"kernel_size": (7, 1), "padding": (3, 0)}
        self.branch1x1 = BasicConv2d(n_in, c192, kernel_size=1)
        self.branch7x7_1 = BasicConv2d(n_in, c7, kernel_size=1)
        self.branch7x7_2 = BasicConv2d(c7, c7, **row)
        self.branch7x7_3 = BasicConv2d(c7, c192, **column)
        self.branch7x7dbl_1 = BasicConv2d(n_in, c7, kernel_size=1)
        self.branch7x7dbl_2 = BasicConv2d(c7, c7, **column)
        self.branch7x7dbl_3 = BasicConv2d(c7, c7, **row)
        self.branch7x7dbl_4 = BasicConv2d(c7, c7, **column)
        self.branch7x7dbl_5 = BasicConv2d(c7, c192, **row)
        self.branch_pool = BasicConv2d(n_in, c192, kernel_size=1)
        self.n_out = 4 * c192

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Map [B, C, H, W] to [B, n_out, H, W]."""
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x_BCHW)))
        pooled = functional.avg_pool2d(x_BCHW, kernel_size=3, stride=1, padding=1)
        return torch.cat(
            [
                self.branch1x1(x_BCHW),
                self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x_BCHW))),
                self.branch7x7dbl_5(self.branch7x7dbl_4(double)),
                self.branch_pool(pooled),
            ],
            1,
        )


class InceptionD(nn.Module):
    """Grid reduction 17 -> 8 (at 299 pixels)."""

    def __init__(self, n_in: int, width: float) -> None:
        super().__init__()
        c192 = scaled(192, width)
        self.branch3x3_1 = BasicConv2d(n_in, c192, kernel_size=1)
        self.branch3x3_2 = BasicConv2d(c192, scaled(320, width), kernel_size=3, stride=2)
        self.branch7x7x3_1 = BasicConv2d(n_in, c192, kernel_size=1)
        self.branch7x7x3_2 = BasicConv2d(c192, c192, kernel_size=(1, 7), padding=(0, 3))
        self.branch7x7x3_3 = BasicConv2d(c192, c192, kernel_size=(7, 1), padding=(3, 0))
        self.branch7x7x3_4 = BasicConv2d(c192, c192, kernel_size=3, stride=2)
        self.n_out = self.branch3x3_2.n_out + c192 + n_in

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Map [B, C, H, W] to [B, n_out, H/2, W/2]."""
        factorised = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x_BCHW)))
        return torch.cat(
            [
                self.branch3x3_2(self.branch3x3_1(x_BCHW)),
                self.branch7x7x3_4(factorised),
                functional.max_pool2d(x_BCHW, kernel_size=3, stride=2),
            ],
            1,
        )


class InceptionE(nn.Module):
    """Figure 7: expanded filter banks at the coarsest grid."""

    def __init__(self, n_in: int, width: float) -> None:
        super().__init__()
        c384 = scaled(384, width)
        row: dict[str, Any] = {"kernel_size": (1, 3), "padding": (0, 1)}
        column: dict[str, Any] = {"kernel_size": (3, 1), "padding": (1, 0)}
        self.branch1x1 = BasicConv2d(n_in, scaled(320, width), kernel_size=1)
        self.branch3x3_1 = BasicConv2d(n_in, c384, kernel_size=1)
        self.branch3x3_2a = BasicConv2d(c384, c384, **row)
        self.branch3x3_2b = BasicConv2d(c384, c384, **column)
        self.branch3x3dbl_1 = BasicConv2d(n_in, scaled(448, width), kernel_size=1)
        self.branch3x3dbl_2 = BasicConv2d(self.branch3x3dbl_1.n_out, c384, kernel_size=3, padding=1)
        self.branch3x3dbl_3a = BasicConv2d(c384, c384, **row)
        self.branch3x3dbl_3b = BasicConv2d(c384, c384, **column)
        self.branch_pool = BasicConv2d(n_in, scaled(192, width), kernel_size=1)
        self.n_out = self.branch1x1.n_out + 4 * c384 + self.branch_pool.n_out

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Map [B, C, H, W] to [B, n_out, H, W]."""
        single = self.branch3x3_1(x_BCHW)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x_BCHW))
        pooled = functional.avg_pool2d(x_BCHW, kernel_size=3, stride=1, padding=1)
        return torch.cat(
            [
                self.branch1x1(x_BCHW),
                self.branch3x3_2a(single),
                self.branch3x3_2b(single),
                self.branch3x3dbl_3a(double),
                self.branch3x3dbl_3b(double),
                self.branch_pool(pooled),
            ],
            1,
        )


class InceptionStrata(nn.Module):
    """Single-image classifier of strata; its `embed` feeds the recurrent network.

    Parameters
    ----------
    width
        Multiplier of every channel count; 1 is Inception-V3.
    size
        Side S of the input in pixels, at least 75.
    dropout
        Share of pooled features dropped while training, 0..1.
    n_slices
        Neighbouring slices it sees as channels, the one it labels in the middle: 1, or 3. With 3, fields are
        [B, 3, S, S] wherever [B, S, S] is said.
    with_distances
        Whether it also has a layer that says how far a slice lies below each boundary, for training alone.
    """

    def __init__(
        self,
        width: float = 1.0,
        size: int = 299,
        dropout: float = 0.2,
        n_slices: int = 1,
        *,
        with_distances: bool = False,
    ) -> None:
        super().__init__()
        if size < SMALLEST_INPUT:
            raise DataSetError(
                f"an Inception-V3 input must be at least {SMALLEST_INPUT} pixels wide, got {size}"
            )
        self.size = size
        self.n_slices = n_slices
        c32, c64, c80 = scaled(32, width), scaled(64, width), scaled(80, width)
        self.Conv2d_1a_3x3 = BasicConv2d(n_slices, c32, kernel_size=3, stride=2)
        self.Conv2d_2a_3x3 = BasicConv2d(c32, c32, kernel_size=3)
        self.Conv2d_2b_3x3 = BasicConv2d(c32, c64, kernel_size=3, padding=1)
        self.Conv2d_3b_1x1 = BasicConv2d(c64, c80, kernel_size=1)
        self.Conv2d_4a_3x3 = BasicConv2d(c80, scaled(192, width), kernel_size=3)
        self.Mixed_5b = InceptionA(self.Conv2d_4a_3x3.n_out, 32, width)
        self.Mixed_5c = InceptionA(self.Mixed_5b.n_out, 64, width)
        self.Mixed_5d = InceptionA(self.Mixed_5c.n_out, 64, width)
        self.Mixed_6a = InceptionB(self.Mixed_5d.n_out, width)
        self.Mixed_6b = InceptionC(self.Mixed_6a.n_out, 128, width)
        self.Mixed_6c = InceptionC(self.Mixed_6b.n_out, 160, width)
        self.Mixed_6d = InceptionC(self.Mixed_6c.n_out, 160, width)
        self.Mixed_6e = InceptionC(self.Mixed_6d.n_out, 192, width)
        self.Mixed_7a = InceptionD(self.Mixed_6e.n_out, width)
        self.Mixed_7b = InceptionE(self.Mixed_7a.n_out, width)
        self.Mixed_7c = InceptionE(self.Mixed_7b.n_out, width)
        self.dropout = nn.Dropout(dropout)
        self.fc_embedding = nn.Linear(self.Mixed_7c.n_out, EMBEDDING_SIZE)
        self.fc = nn.Linear(EMBEDDING_SIZE, N_CLASSES)
        if with_distances:
            self.fc_distances = nn.Linear(EMBEDDING_SIZE, len(BOUNDARIES))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, field_BSS: torch.Tensor) -> torch.Tensor:
        """Map slices [B, S, S] in grey levels 0..255 to pooled features [B, F]."""
        x = standardise(field_BSS)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = functional.max_pool2d(x, kernel_size=3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = functional.max_pool2d(x, kernel_size=3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        x = self.Mixed_6e(self.Mixed_6d(x))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        pooled_BF: torch.Tensor = x.mean(dim=(2, 3))
        return pooled_BF

    def embed(self, field_BSS: torch.Tensor) -> torch.Tensor:
        """Map slices [B, S, S] in grey levels 0..255 to embeddings [B, 256], before the non-linearity."""
        embedding_BE: torch.Tensor = self.fc_embedding(self.dropout(self.features(field_BSS)))
        return embedding_BE

    def forward(self, field_BSS: torch.Tensor) -> torch.Tensor:
        """Map slices [B, S, S] in grey levels 0..255 to class logits [B, 3]."""
        return self.classify(self.embed(field_BSS))

    def classify(self, embedding_BE: torch.Tensor) -> torch.Tensor:
        """Map embeddings [B, 256] to class logits [B, 3]."""
        logits_BK: torch.Tensor = self.fc(functional.relu(embedding_BE))
        return logits_BK

    def distances(self, embedding_BE: torch.Tensor) -> torch.Tensor:
        """Map embeddings [B, 256] to compressed distances below both boundaries [B, 2]."""
        distances_B2: torch.Tensor = self.fc_distances(embedding_BE)
        return distances_B2

    def load_imagenet(self, path: Path) -> None:
        """Take the trunk's weights from a torchvision `inception_v3` state-dict file.

        The first layer is summed over colour (for three slices it is taken as it is); the classifier and the
        auxiliary head are left out.

        Raises
        ------
        DataSetError
            If the network is not of width 1, or the file lacks or misshapes a trunk parameter.
        """
        state = read_torch_file(path, "the file of ImageNet weights")
        self.load_state_dict({**self.state_dict(), **_trunk(state, self.state_dict(), path)})


def _trunk(
    state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], path: Path
) -> dict[str, torch.Tensor]:
    trunk = {name: value for name, value in state.items() if not name.startswith(("AuxLogits.", "fc."))}
    first = "Conv2d_1a_3x3.conv.weight"
    if first in trunk and own[first].shape[1] == 1:
        trunk[first] = trunk[first].sum(dim=1, keepdim=True)
    wanted = {
        name: value.shape for name, value in own.items() if not name.startswith(("fc_embedding.", "fc."))
    }
    faults = [name for name in wanted if name not in trunk or trunk[name].shape != wanted[name]]
    faults += [name for name in trunk if name not in wanted]
    if faults:
        raise DataSetError(
            f"ImageNet weights must be torchvision's inception_v3 and the network of width 1, but "
            f"{len(faults)} parameters of {path} do not fit, the first is {faults[0]}"
        )
    return trunk


class SliceEmbedder(nn.Module):
    """Whole-field uint8 slices to embeddings: what cnn.onnx computes.

    Parameters
    ----------
    network
        The trained classifier, in evaluation mode.
    """

    def __init__(self, network: InceptionStrata) -> None:
        super().__init__()
        self.network = network

    def forward(self, slices_BRC: torch.Tensor) -> torch.Tensor:
        """Map uint8 slices [B, R, C] to embeddings [B, 256]."""
        return self.network.embed(resize(slices_BRC, self.network.size))
