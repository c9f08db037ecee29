"""RRDBNet, the generator of ESRGAN and Real-ESRGAN: dense blocks within residual blocks within a residual.

Wang et al. 2018 (ESRGAN) and 2021 (Real-ESRGAN). Module names are those of Real-ESRGAN's files.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davae.models.upscalers.network import UpscalingNetwork

_SLOPE = 0.2  # of every leaky ReLU
_RESIDUAL = 0.2  # weight of what a block adds
CONVOLUTIONS = 5
"""Of a dense block."""
DENSE_BLOCKS = 3
"""Of a residual block."""


class DenseBlock(nn.Module):
    """Five convolutions, each of which sees all before it: [B, features, h, w] to the same shape."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        for index in range(CONVOLUTIONS):
            width = features if index == CONVOLUTIONS - 1 else growth
            self.add_module(f"conv{index + 1}", nn.Conv2d(features + index * growth, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        *inner, last = self.children()
        seen = x
        for convolution in inner:
            seen = torch.cat([seen, F.leaky_relu(convolution(seen), _SLOPE)], dim=1)
        return x + _RESIDUAL * last(seen)


class ResidualInResidual(nn.Module):
    """Three dense blocks and a residual around them: [B, features, h, w] to the same shape."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        for index in range(DENSE_BLOCKS):
            self.add_module(f"rdb{index + 1}", DenseBlock(features, growth))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        out = x
        for block in self.children():
            out = block(out)
        return x + _RESIDUAL * out


class RRDBNet(UpscalingNetwork):
    """The whole network.

    Args:
        blocks: residual blocks; Real-ESRGAN x4plus has 23.
        features: channels between them; 64.
        growth: channels that a convolution of a dense block adds; 32.
        doublings: times that the side is doubled at the end.
        unshuffle: pixels a side that are folded into channels at the beginning; 2 in Real-ESRGAN x2plus, which
            doubles twice all the same.
    """

    def __init__(self, blocks: int, features: int, growth: int, doublings: int = 2, unshuffle: int = 1) -> None:
        super().__init__()
        self.scale, self.multiple = 2**doublings // unshuffle, unshuffle
        self.conv_first = nn.Conv2d(3 * unshuffle**2, features, 3, padding=1)
        self.body = nn.Sequential(*(ResidualInResidual(features, growth) for _ in range(blocks)))
        self.conv_body = nn.Conv2d(features, features, 3, padding=1)
        for index in range(doublings):
            self.add_module(f"conv_up{index + 1}", nn.Conv2d(features, features, 3, padding=1))
        self.conv_hr = nn.Conv2d(features, features, 3, padding=1)
        self.conv_last = nn.Conv2d(features, 3, 3, padding=1)
        self._doublings = doublings

    @property
    def geometry(self) -> str:
        """See `UpscalingNetwork`."""
        return f"RRDBNet, {len(self.body)} blocks, {self.conv_first.out_channels} features, x{self.scale}"

    def forward(self, images: Tensor) -> Tensor:
        """See `UpscalingNetwork`."""
        first = self.conv_first(F.pixel_unshuffle(images, self.multiple))  # [B, features, h / multiple, ...]
        features = first + self.conv_body(self.body(first))
        for index in range(self._doublings):
            doubled = F.interpolate(features, scale_factor=2, mode="nearest")
            features = F.leaky_relu(self.get_submodule(f"conv_up{index + 1}")(doubled), _SLOPE)
        out: Tensor = self.conv_last(F.leaky_relu(self.conv_hr(features), _SLOPE))
        return out
