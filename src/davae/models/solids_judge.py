"""The judge of `solids`: a small convolutional network that names what an image shows; its features compare sets.

It has to see fine lines and sharp outlines, which are few pixels and little energy. So the strength of the two finest
bands stands beside the image, and norms are over the batch: those over an image would take that strength away again.
Shapes: B batch, S `image_size`, F the last of `widths`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davae.core.pixels import enlarge
from davae.models.diffusers_model import DiffusersModel, register_to_config

COARSEST = 0.5
"""The judge tells images apart that hold between this share of its pixels, a side, and all of them."""


_BANDS, _GAIN = 2, 16.0  # a groove's strength is then about that of the image itself


@dataclass
class Judgement:
    """What the judge makes of a batch.

    Args:
        features: [B, F], means over the last map.
        logits: attribute -> [B, its number of words].
        fineness: [B]; 1 of what looks as if rendered at S pixels, 0.5 of what looks enlarged from half as many.
    """

    features: Tensor
    logits: dict[str, Tensor]
    fineness: Tensor


class SolidsJudge(DiffusersModel):
    """Images [B, 3, S, S] in [-1, 1] -> `Judgement`.

    Args:
        words: attribute -> its words, in the order of the logits: "shape" -> ["sphere", "box", "pyramid"].
        image_size: S, pixels.
        widths: channels of the levels; the first is at S / 4, each further one at half of that.
    """

    @register_to_config
    def __init__(
        self,
        words: Mapping[str, Sequence[str]],
        image_size: int = 128,
        widths: Sequence[int] = (24, 48, 96, 128),
    ) -> None:
        super().__init__()
        levels = zip((widths[0], *widths[:-1]), widths, strict=True)
        self.stem = nn.Sequential(
            nn.Conv2d(3 + _BANDS, widths[0], 5, stride=2, padding=2, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.SiLU(),
        )
        self.levels = nn.Sequential(*(_Level(before, after) for before, after in levels))
        self.heads = nn.ModuleDict({name: nn.Linear(widths[-1], len(known)) for name, known in words.items()})
        self.fineness = nn.Linear(widths[-1], 1)

    @property
    def words(self) -> dict[str, tuple[str, ...]]:
        """Attribute -> its words, in the order of the logits."""
        return {name: tuple(known) for name, known in self.config.words.items()}

    def forward(self, images: Tensor) -> Judgement:
        """[B, 3, S, S] -> `Judgement`."""
        seen = torch.cat([images, strengths(images)], dim=1).contiguous(memory_format=torch.channels_last)
        features = self.levels(self.stem(seen)).mean(dim=(2, 3))
        logits = {name: head(features) for name, head in self.heads.items()}
        fineness = 1 - (1 - COARSEST) * (0.5 - self.fineness(features)[:, 0] / 2)
        return Judgement(features, logits, fineness)


def strengths(images: Tensor) -> Tensor:
    """How strong the finest bands of a Laplacian pyramid are at each pixel: [B, 3, S, S] -> [B, 2, S, S], at least 0.

    Of the mean over colours; the finest first, the second at half the size, pixels doubled.
    """
    found, finer, side = [], images.mean(dim=1, keepdim=True), images.shape[-1]
    for _ in range(_BANDS):
        coarser = F.avg_pool2d(finer, 2)
        band = (finer - enlarge(coarser, finer.shape[-1])).abs() * _GAIN
        found.append(F.interpolate(band, size=(side, side)))
        finer = coarser
    return torch.cat(found, dim=1)


class _Level(nn.Module):
    """[B, C, H, W] -> [B, C', H / 2, W / 2]: two convolutions beside a projection."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
        self.norm_down = nn.BatchNorm2d(after)
        self.conv = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(after)
        self.shortcut = nn.Conv2d(before, after, 1, stride=2, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        inner = F.silu(self.norm_down(self.down(hidden)))
        return F.silu(self.norm(self.conv(inner)) + self.shortcut(hidden))


def embedded_judge() -> Path:
    """Folder of the judge that comes with the package."""
    return Path(str(files("davae") / "judge"))
