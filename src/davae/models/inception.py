"""The Inception network that defines FID: the graph of 2015-12-05 in its PyTorch port, 566 tensors in a file.

It is not torchvision's `inception_v3`: it has 1008 outputs, its average pools leave padding uncounted, and the pool
of its last block is a maximum. Batch norms are folded into the convolutions in front of them, in float64, at loading.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davae.models.weights import INCEPTION, load_weights

SIDE: Final = 299
"""Pixels of the square images that the network takes."""
SPATIAL_CHANNELS: Final = 7
"""Channels of the map that sFID looks at."""
_BATCH_NORM_EPS: Final = 1e-3


class InceptionFeatures(NamedTuple):
    """What metrics take from the network, float32.

    Args:
        pool: [B, 2048], means over the last map.
        logits: [B, 1008], `pool` times the last layer's weights, without its bias.
        spatial: [B, 2023], the first 7 channels of `Mixed_6d.branch1x1` after its ReLU: row, column, channel.
    """

    pool: Tensor
    logits: Tensor
    spatial: Tensor


class InceptionFID(nn.Module):
    """Features of images; frozen and always in eval mode.

    There is no constructor without weights: with random features the number looks right and means nothing.

    Args:
        weights: the state dict of `pt_inception-2015-12-05`; `num_batches_tracked` may be missing.

    Raises:
        ValueError: a tensor is missing, unknown, or of another shape.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        with torch.device("meta"):
            self._build()
        self.load_state_dict(_folded(weights, self.state_dict()), assign=True)
        self.requires_grad_(False)
        self.eval()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _build(self) -> None:
        self.Conv2d_1a_3x3 = _Unit(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Unit(32, 32, 3)
        self.Conv2d_2b_3x3 = _Unit(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _Unit(64, 80, 1)
        self.Conv2d_4a_3x3 = _Unit(80, 192, 3)
        self.Mixed_5b = _BlockA(192, pool=32)
        self.Mixed_5c = _BlockA(256, pool=64)
        self.Mixed_5d = _BlockA(288, pool=64)
        self.Mixed_6a = _BlockB(288)
        self.Mixed_6b = _BlockC(768, width=128)
        self.Mixed_6c = _BlockC(768, width=160)
        self.Mixed_6d = _BlockC(768, width=160)
        self.Mixed_6e = _BlockC(768, width=192)
        self.Mixed_7a = _BlockD(768)
        self.Mixed_7b = _BlockE(1280, pool=_average)
        self.Mixed_7c = _BlockE(2048, pool=_maximum)
        self.fc = nn.Linear(2048, 1008, bias=False)

    @classmethod
    def from_pretrained(
        cls, path: Path | None = None, allow_download: bool = False, say: Callable[[str], None] | None = None
    ) -> Self:
        """Load the public weights; see `davae.models.weights` for where they are looked for.

        Args:
            path: None looks for the public file; else its path (`.pth`, checked by its checksum), or the path of a
                `.safetensors` with the same keys and shapes.
            allow_download: whether the public file may be fetched where no copy is found.
            say: is told of a download before it starts.

        Raises:
            FileNotFoundError: the file is not there; the message says what to fetch, and where to put it.
            ValueError: the file holds something else.
            ConnectionError: the download failed.
        """
        [weights] = load_weights({INCEPTION: path}, allow_download, say)
        return cls(weights)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever the module that holds this one does."""
        return super().train(False)

    def forward(self, images: Tensor) -> InceptionFeatures:
        """Images [B, 3, 299, 299], nominally in [-1, 1], resized by one of the protocols -> their features."""
        if images.ndim != 4 or images.shape[1:] != (3, SIDE, SIDE):
            raise ValueError(
                f"The FID Inception cannot take images of shape {tuple(images.shape)}; allowed is "
                f"[B, 3, {SIDE}, {SIDE}]. Resize them by a protocol of davae.evaluate.spaces."
            )
        hidden = images.contiguous(memory_format=torch.channels_last)
        hidden = self.Conv2d_1a_3x3(hidden)  # 149 x 149
        hidden = self.Conv2d_2a_3x3(hidden)  # 147
        hidden = self.Conv2d_2b_3x3(hidden)
        hidden = F.max_pool2d(hidden, 3, stride=2)  # 73
        hidden = self.Conv2d_3b_1x1(hidden)
        hidden = self.Conv2d_4a_3x3(hidden)  # 71
        hidden = F.max_pool2d(hidden, 3, stride=2)  # 35
        hidden = self.Mixed_5b(hidden)
        hidden = self.Mixed_5c(hidden)
        hidden = self.Mixed_5d(hidden)
        hidden = self.Mixed_6a(hidden)  # 17
        hidden = self.Mixed_6b(hidden)
        hidden = self.Mixed_6c(hidden)
        hidden = self.Mixed_6d(hidden)
        spatial = hidden[:, :SPATIAL_CHANNELS]  # the block's first branch comes first in it
        hidden = self.Mixed_6e(hidden)
        hidden = self.Mixed_7a(hidden)  # 8
        hidden = self.Mixed_7b(hidden)
        hidden = self.Mixed_7c(hidden)
        pool = hidden.mean(dim=(2, 3))
        return InceptionFeatures(pool, self.fc(pool), spatial.permute(0, 2, 3, 1).flatten(1))


class _Unit(nn.Conv2d):
    """Convolution, its folded batch norm, ReLU."""

    def forward(self, hidden: Tensor) -> Tensor:
        return F.relu(super().forward(hidden), inplace=True)


def _across(inputs: int, outputs: int) -> _Unit:
    return _Unit(inputs, outputs, (1, 7), padding=(0, 3))


def _down(inputs: int, outputs: int) -> _Unit:
    return _Unit(inputs, outputs, (7, 1), padding=(3, 0))


class _BlockA(nn.Module):
    def __init__(self, width: int, pool: int) -> None:
        super().__init__()
        self.branch1x1 = _Unit(width, 64, 1)
        self.branch5x5_1 = _Unit(width, 48, 1)
        self.branch5x5_2 = _Unit(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = _Unit(width, 64, 1)
        self.branch3x3dbl_2 = _Unit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Unit(96, 96, 3, padding=1)
        self.branch_pool = _Unit(width, pool, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        single = self.branch1x1(hidden)
        five = self.branch5x5_2(self.branch5x5_1(hidden))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(hidden)))
        return torch.cat([single, five, three, self.branch_pool(_average(hidden))], dim=1)


class _BlockB(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch3x3 = _Unit(width, 384, 3, stride=2)
        self.branch3x3dbl_1 = _Unit(width, 64, 1)
        self.branch3x3dbl_2 = _Unit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Unit(96, 96, 3, stride=2)

    def forward(self, hidden: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(hidden)))
        return torch.cat([self.branch3x3(hidden), double, F.max_pool2d(hidden, 3, stride=2)], dim=1)


class _BlockC(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.branch1x1 = _Unit(inputs, 192, 1)
        self.branch7x7_1 = _Unit(inputs, width, 1)
        self.branch7x7_2 = _across(width, width)
        self.branch7x7_3 = _down(width, 192)
        self.branch7x7dbl_1 = _Unit(inputs, width, 1)
        self.branch7x7dbl_2 = _down(width, width)
        self.branch7x7dbl_3 = _across(width, width)
        self.branch7x7dbl_4 = _down(width, width)
        self.branch7x7dbl_5 = _across(width, 192)
        self.branch_pool = _Unit(inputs, 192, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        single = self.branch1x1(hidden)
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(hidden)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(hidden)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([single, seven, double, self.branch_pool(_average(hidden))], dim=1)


class _BlockD(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch3x3_1 = _Unit(width, 192, 1)
        self.branch3x3_2 = _Unit(192, 320, 3, stride=2)
        self.branch7x7x3_1 = _Unit(width, 192, 1)
        self.branch7x7x3_2 = _across(192, 192)
        self.branch7x7x3_3 = _down(192, 192)
        self.branch7x7x3_4 = _Unit(192, 192, 3, stride=2)

    def forward(self, hidden: Tensor) -> Tensor:
        three = self.branch3x3_2(self.branch3x3_1(hidden))
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(hidden)))
        return torch.cat([three, self.branch7x7x3_4(seven), F.max_pool2d(hidden, 3, stride=2)], dim=1)


class _BlockE(nn.Module):
    def __init__(self, width: int, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.pool = pool
        self.branch1x1 = _Unit(width, 320, 1)
        self.branch3x3_1 = _Unit(width, 384, 1)
        self.branch3x3_2a = _Unit(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = _Unit(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = _Unit(width, 448, 1)
        self.branch3x3dbl_2 = _Unit(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = _Unit(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = _Unit(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = _Unit(width, 192, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        three = self.branch3x3_1(hidden)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(hidden))
        parts = [
            self.branch1x1(hidden),
            self.branch3x3_2a(three),
            self.branch3x3_2b(three),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(self.pool(hidden)),
        ]
        return torch.cat(parts, dim=1)


def _average(hidden: Tensor) -> Tensor:
    return F.avg_pool2d(hidden, 3, stride=1, padding=1, count_include_pad=False)


def _maximum(hidden: Tensor) -> Tensor:
    return F.max_pool2d(hidden, 3, stride=1, padding=1)


def _folded(weights: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors as the network holds them; every one of them is accounted for."""
    units = [key.removesuffix(".bias") for key in ours if key.endswith(".bias")]
    _account(weights, units, ours)
    folded = {"fc.weight": weights["fc.weight"].float()}
    for unit in units:
        convolution, shift = weights[f"{unit}.conv.weight"].double(), weights[f"{unit}.bn.bias"].double()
        mean, variance = (weights[f"{unit}.bn.running_{name}"].double() for name in ("mean", "var"))
        scale = weights[f"{unit}.bn.weight"].double() / (variance + _BATCH_NORM_EPS).sqrt()
        folded[f"{unit}.weight"] = (convolution * scale[:, None, None, None]).float()
        folded[f"{unit}.bias"] = (shift - mean * scale).float()
    return folded


def _account(weights: Mapping[str, Tensor], units: list[str], ours: Mapping[str, Tensor]) -> None:
    """Every tensor is known, present and of its shape, or the weights are refused."""
    expected = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    for unit in units:
        expected[f"{unit}.conv.weight"] = tuple(ours[f"{unit}.weight"].shape)
        for name in ("weight", "bias", "running_mean", "running_var"):
            expected[f"{unit}.bn.{name}"] = tuple(ours[f"{unit}.bias"].shape)
    counters = {f"{unit}.bn.num_batches_tracked" for unit in units}
    missing, unknown = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys() - counters)
    shapes = [
        f"{key} {tuple(weights[key].shape)} instead of {shape}"
        for key, shape in expected.items()
        if key in weights and tuple(weights[key].shape) != shape
    ]
    if missing or unknown or shapes:
        raise ValueError(
            f"These are not the weights of the {INCEPTION.title}: missing {missing[:4]} ({len(missing)} in all), "
            f"unknown {unknown[:4]} ({len(unknown)} in all), other shapes {shapes[:4]} ({len(shapes)}). "
            f"Use {INCEPTION.url}."
        )
