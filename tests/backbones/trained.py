"""Widened transformers with LoRA that has moved, and upgraded pipelines to put it on."""

from typing import Any

import torch
from torch import Tensor

import davae
from backbones.families import FAMILIES, Family
from davae.backbones.lora import prepare_lora
from davae.backbones.registry import backbone_of
from davae.backbones.settings import LoraSettings

DETAIL = 6


def widened(name: str, detail_channels: int = DETAIL) -> Any:
    """The same weights every time."""
    torch.manual_seed(0)
    return davae.widen(FAMILIES[name].transformer(), detail_channels)


def trained(name: str, transformer: Any = None, **settings: Any) -> Any:
    """A transformer whose LoRA and heads have moved; alpha is not the rank, so that it matters."""
    settings = {"rank": 2, "alpha": 6.0} | settings
    model = prepare_lora(widened(name) if transformer is None else transformer, LoraSettings(**settings), seed=0)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn(weight.shape, generator=noise))
    return model.eval()


def predict(name: str, model: Any) -> Tensor:
    channels = backbone_of(model).latent_channels(model.config)
    latent = torch.randn(2, channels, *FAMILIES[name].sizes, generator=torch.Generator().manual_seed(2))
    return FAMILIES[name].predict(model, latent)


def upgraded(family: Family) -> Any:
    """The same pipeline every time."""
    torch.manual_seed(0)
    pipe = davae.upgrade(family.make(), detail_channels=DETAIL)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def images(family: Family, pipe: Any) -> Tensor:
    return torch.from_numpy(family.draw(pipe))
