"""Frozen features of a vision foundation model (DINOv2, MAE), to which VA-VAE aligns its latent."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from davae.core.pixels import IMAGENET_DEVIATION, IMAGENET_MEAN


@dataclass(frozen=True)
class FoundationFamily:
    """How one model type of transformers gives up its patch tokens."""

    class_name: str
    """The transformers class without a head; its `last_hidden_state` is after the final norm."""
    tokens: Callable[[PreTrainedModel, Tensor], Tensor]
    """(model, pixels [B, 3, S, S]) -> [B, 1 + (S / patch)^2, K], class token first, then row by row."""


def _mae_tokens(model: PreTrainedModel, pixels: Tensor) -> Tensor:
    # MAE sorts its patches by random noise and keeps a quarter. Rising noise keeps the order, a ratio of 0 all.
    model.config.mask_ratio = 0.0
    positions = model.get_submodule("embeddings").position_embeddings
    assert isinstance(positions, Tensor)
    count = positions.shape[1] - 1
    noise = torch.arange(count, dtype=torch.float32, device=pixels.device).expand(len(pixels), count)
    return model(pixels, noise=noise, interpolate_pos_encoding=True).last_hidden_state


def _dinov2_tokens(model: PreTrainedModel, pixels: Tensor) -> Tensor:
    return model(pixels).last_hidden_state


FAMILIES: Final = {
    "dinov2": FoundationFamily("Dinov2Model", _dinov2_tokens),
    "vit_mae": FoundationFamily("ViTMAEModel", _mae_tokens),
}
"""By `model_type` of the model's config.json. A new one is an entry here and a test."""


class FoundationFeatures(nn.Module):
    """A frozen foundation model on the grid of a latent; always in eval mode, never a gradient.

    The image is resized (bilinear) so that its patches are the positions of the latent: for 16x16 positions
    that is 224 px for DINOv2 with 14 px patches, and a 256 px image as it is for MAE with 16 px patches.

    Args:
        model: a transformers model of one of `FAMILIES`. It is changed: frozen, and its position table is brought
            to `grid`, by the antialiased bicubic of timm, with which the published models were trained.
        grid: positions of the latent, a side.
        normalise: give the model ImageNet's mean 0 and deviation 1, as it was itself trained. Off by default:
            the reference hands it images in [-1, 1] as they are, and the published VA-VAEs were aligned to that.

    Raises:
        ValueError: the model is of an unknown family.
    """

    def __init__(self, model: PreTrainedModel, grid: int, normalise: bool = False) -> None:
        super().__init__()
        self.family = _family_of(model.config.model_type)
        self.model, self.grid, self.normalise = model, grid, normalise
        self.channels: int = model.config.hidden_size
        self._side = grid * model.config.patch_size
        positions = model.get_parameter("embeddings.position_embeddings").detach()
        model.get_submodule("embeddings").position_embeddings = nn.Parameter(_resample(positions, grid))
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_pretrained(cls, model: str, grid: int, normalise: bool = False) -> Self:
        """Load a folder that transformers saved, or a model of the Hugging Face hub by its id (OWNER/NAME).

        Raises:
            FileNotFoundError: there is no such folder, or the hub does not give it.
            ValueError: the model is of an unknown family, or its weights are not complete.
        """
        if Path(model).is_dir() and not (Path(model) / "config.json").is_file():
            raise FileNotFoundError(_missing(model, "the folder has no config.json"))
        if not Path(model).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
            raise FileNotFoundError(_missing(model, "no such folder, and no OWNER/NAME of the hub"))
        try:
            config, _ = transformers.PreTrainedConfig.get_config_dict(model)
            family = _family_of(config.get("model_type"))
            network, report = getattr(transformers, family.class_name).from_pretrained(
                model, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
        except OSError as error:
            reason = str(error).splitlines()[0]
            if pickled := sorted(file.name for file in Path(model).glob("*.bin")):
                reason = f"got {pickled[0]}, allowed are safetensors; save it again with save_pretrained"
            raise FileNotFoundError(_missing(model, reason)) from error
        if report["missing_keys"]:  # random features would look right and mean nothing
            raise ValueError(
                f"The foundation model {model} is not complete: got no weights for "
                f"{sorted(report['missing_keys'])[:4]} ({len(report['missing_keys'])} in all). "
                f"Download it again, or save it with the class {family.class_name} of transformers."
            )
        return cls(network, grid, normalise)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever the module that holds this one does."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] in [-1, 1] -> patch features [B, K, grid, grid] after the final norm, float32."""
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
            raise ValueError(
                f"Foundation features are of square images; got {tuple(images.shape)}, allowed [B, 3, S, S]. "
                f"Crop them first."
            )
        pixels = F.interpolate(images, size=(self._side, self._side), mode="bilinear", align_corners=False)
        if self.normalise:
            mean, std = (
                torch.tensor(values).view(3, 1, 1).to(pixels) for values in (IMAGENET_MEAN, IMAGENET_DEVIATION)
            )
            pixels = ((pixels + 1) / 2 - mean) / std
        tokens = self.family.tokens(self.model, pixels)[:, 1:].float()
        return tokens.transpose(1, 2).unflatten(2, (self.grid, self.grid))


def _family_of(model_type: str | None) -> FoundationFamily:
    if model_type not in FAMILIES:
        raise ValueError(
            f"Cannot take features of a foundation model of type {model_type!r}; "
            f"known: {', '.join(sorted(FAMILIES))}. Take one of these, or extend davae.models.vision_features."
        )
    return FAMILIES[model_type]


def _resample(table: Tensor, grid: int) -> Tensor:
    """Position table [1, 1 + n * n, K] -> [1, 1 + grid * grid, K]; the class token's entry stays."""
    known = round((table.shape[1] - 1) ** 0.5)
    if known == grid:
        return table
    patches = table[:, 1:].unflatten(1, (known, known)).movedim(3, 1).float()
    patches = F.interpolate(patches, size=(grid, grid), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([table[:, :1], patches.flatten(2).transpose(1, 2).to(table)], dim=1)


def _missing(model: str, reason: str) -> str:
    return (
        f"There is no foundation model {model}: {reason}. Give the folder of a saved transformers model "
        f"({', '.join(sorted(FAMILIES))}), or its id on the Hugging Face hub, for example facebook/dinov2-large."
    )
