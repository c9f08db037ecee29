"""The two new layers of a structured autoencoder: detail down block and up block (method, Fig. S1).

Both change the resolution with a pixel (un)shuffle and carry a shortcut without parameters where the
widths divide, as DC-AE's do; otherwise a zero-initialised 1x1 conv is the shortcut.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn


def _zero_projection(in_channels: int, out_channels: int) -> nn.Conv2d:
    projection = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
    nn.init.zeros_(projection.weight)
    return projection


class DetailDownBlock(nn.Module):
    """Features [B, in_channels, H, W] -> moments [B, out_channels, H / factor, W / factor].

    y = unshuffle(conv3x3(x)) + shortcut(x); the shortcut is the mean over groups of consecutive channels of
    unshuffle(x) where factor^2 * in_channels is a multiple of out_channels.

    Args:
        in_channels: width of the encoder's last features.
        out_channels: 2 D: means first, log-variances after.
        factor: the scale s.
        mode: "unshuffle" (conv, then unshuffle) or "strided" (one strided conv).
        learned_shortcut: use the 1x1 conv even where the widths divide.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        factor: int = 2,
        mode: Literal["unshuffle", "strided"] = "unshuffle",
        learned_shortcut: bool = False,
    ) -> None:
        super().__init__()
        area = factor**2
        if mode == "unshuffle" and out_channels % area:
            raise ValueError(
                f"The detail down block cannot make {out_channels} channels by a pixel unshuffle of {factor}; "
                f"2 * detail_channels must be a multiple of {area}. Choose detail_channels divisible by {area // 2}."
            )
        self.factor, self.mode = factor, mode
        stride, width = (1, out_channels // area) if mode == "unshuffle" else (factor, out_channels)
        self.conv = nn.Conv2d(in_channels, width, kernel_size=3, stride=stride, padding=1)
        self.group_size, remainder = divmod(area * in_channels, out_channels)
        learned = learned_shortcut or remainder
        self.shortcut_proj = _zero_projection(area * in_channels, out_channels) if learned else None

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H / factor, W / factor]."""
        main = self.conv(hidden_states)
        if self.mode == "unshuffle":
            main = F.pixel_unshuffle(main, self.factor)
        folded = F.pixel_unshuffle(hidden_states, self.factor)  # channel index c * factor^2 + phase
        if self.shortcut_proj is not None:
            return main + self.shortcut_proj(folded)
        return main + folded.unflatten(1, (-1, self.group_size)).mean(dim=2)


class DetailUpBlock(nn.Module):
    """Latent [B, in_channels, h, w] -> features [B, out_channels, h * factor, w * factor].

    y = shuffle(conv3x3(z)) + shuffle(shortcut(z)); the shortcut repeats every latent channel
    factor^2 * out_channels / in_channels times in a row where that is a whole number.

    Args:
        in_channels: C + D.
        out_channels: width of the decoder's first features.
        factor: the scale s.
    """

    def __init__(self, in_channels: int, out_channels: int, factor: int = 2) -> None:
        super().__init__()
        width = factor**2 * out_channels
        self.factor = factor
        self.conv = nn.Conv2d(in_channels, width, kernel_size=3, padding=1)
        self.repeats, remainder = divmod(width, in_channels)
        self.shortcut_proj = _zero_projection(in_channels, width) if remainder else None

    def forward(self, latent: Tensor) -> Tensor:
        """[B, in_channels, h, w] -> [B, out_channels, h * factor, w * factor]."""
        if self.shortcut_proj is not None:
            shortcut = self.shortcut_proj(latent)
        else:
            shortcut = latent.repeat_interleave(self.repeats, dim=1)
        return F.pixel_shuffle(self.conv(latent) + shortcut, self.factor)
