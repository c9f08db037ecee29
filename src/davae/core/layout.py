"""Owner of the channel order of a structured latent: base channels first, detail channels after.

Base channel k belongs to the detail channels k*r .. k*r+r-1 with r = D/C: consecutive groups
(method, Eq. 4). Nothing else in the library concatenates, slices or groups latent channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LatentLayout:
    """Which channels of a latent are base and which are detail.

    Args:
        base_channels: C, the channels of the pretrained latent.
        detail_channels: D, the channels of the full image's detail; 0 describes a plain latent.
    """

    base_channels: int
    detail_channels: int

    def __post_init__(self) -> None:
        if self.base_channels < 1 or self.detail_channels < 0:
            raise ValueError(
                f"Latent layout needs base_channels >= 1 and detail_channels >= 0; "
                f"got {self.base_channels} and {self.detail_channels}."
            )

    @property
    def channels(self) -> int:
        """C + D."""
        return self.base_channels + self.detail_channels

    def join(self, base: Tensor, detail: Tensor, detail_first: bool = False) -> Tensor:
        """[B, C, H, W] and [B, D, H, W] -> [B, C + D, H, W], base first.

        `detail_first` is the order inside the decoder of the reference's text-to-image checkpoints; no latent that
        leaves an autoencoder has it.
        """
        self._expect(base, self.base_channels, "base latent")
        self._expect(detail, self.detail_channels, "detail latent")
        return torch.cat([detail, base] if detail_first else [base, detail], dim=1)

    def split(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C + D, H, W] -> views of the base [B, C, H, W] and the detail [B, D, H, W]."""
        self._expect(latent, self.channels, "latent")
        return latent[:, : self.base_channels], latent[:, self.base_channels :]

    def group_mean(self, detail: Tensor) -> Tensor:
        """Mean of each base channel's group of detail channels: [B, D, H, W] -> [B, C, H, W] (Eq. 4).

        When C does not divide D, the group edges are linspace(0, D, C + 1) rounded half to even, as in
        the reference's text-to-image branch.
        """
        self._expect(detail, self.detail_channels, "detail latent")
        if self.detail_channels < self.base_channels:
            raise ValueError(
                f"Grouped mean needs at least one detail channel per base channel; got "
                f"{self.detail_channels} detail for {self.base_channels} base channels. "
                f"Use detail_channels >= {self.base_channels}, or an alignment weight of 0."
            )
        if self.detail_channels % self.base_channels == 0:
            return torch.unflatten(detail, 1, (self.base_channels, -1)).mean(dim=2)
        edges = self._edges()
        groups = [detail[:, a:b].mean(dim=1) for a, b in zip(edges, edges[1:], strict=False)]
        return torch.stack(groups, dim=1)

    def channel_weights(self, detail_weight: float, base_weight: float = 1.0) -> Tensor:
        """Loss weight of each channel, [C + D]: `base_weight` on the base, `detail_weight` on the detail.

        Raises:
            ValueError: a weight is negative, or all are 0.
        """
        total = base_weight * self.base_channels + detail_weight * self.detail_channels
        if min(base_weight, detail_weight) < 0 or total <= 0:
            raise ValueError(
                f"Channel weights must not be negative and need a positive sum; got {base_weight} on the base, "
                f"{detail_weight} on the detail."
            )
        weights = torch.full((self.channels,), float(base_weight))
        weights[self.base_channels :] = detail_weight
        return weights

    def spread(self, base: Tensor, detail: Tensor) -> Tensor:
        """One number for the base and one for the detail, [B] each, as a number a channel: [B, C + D]."""
        return torch.cat(
            [base[:, None].expand(-1, self.base_channels), detail[:, None].expand(-1, self.detail_channels)], dim=1
        )

    def _edges(self) -> list[int]:
        steps = self.base_channels
        return [round(self.detail_channels * k / steps) for k in range(steps + 1)]

    def _expect(self, latent: Tensor, channels: int, what: str) -> None:
        if latent.ndim < 2 or latent.shape[1] != channels:
            raise ValueError(
                f"The {what} has the wrong width; got shape {tuple(latent.shape)}, expected {channels} channels "
                f"({self.base_channels} base + {self.detail_channels} detail). "
                f"Check that the autoencoder and the transformer belong to one pair."
            )
