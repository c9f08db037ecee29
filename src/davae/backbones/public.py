"""Published transformers as geometry: class, config, compression of the autoencoder they were trained with.

Whoever asks what a model costs (`evaluate.cost`, `davae doctor`, the benchmarks) needs no weights. The configs are
those of the models' pages on the Hugging Face hub; what equals the default of the class is left out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch

from davae.models.lightningdit import LIGHTNINGDIT_SIZES, LightningDiT


@dataclass(frozen=True, kw_only=True)
class PublicModel:
    """A published transformer."""

    transformer: Callable[..., Any]
    """Its class."""
    config: dict[str, Any]
    """Arguments of the class."""
    compression: int = 8
    """f of the autoencoder it was trained with."""
    repositories: tuple[str, ...] = ()
    """Hub ids of its pipelines."""

    def build(self, device: str = "meta") -> Any:
        """The transformer with no weights (on the meta device), or with random ones."""
        with torch.device(device):
            return self.transformer(**self.config)


_SD3 = {
    "sample_size": 128,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
}
_XL = {"num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": 8, "num_layers": 28}

PUBLIC = {
    "SD3-Medium": PublicModel(
        transformer=diffusers.SD3Transformer2DModel,
        config=_SD3 | {"pos_embed_max_size": 192},
        repositories=("stabilityai/stable-diffusion-3-medium-diffusers",),
    ),
    "SD3.5-Medium": PublicModel(
        transformer=diffusers.SD3Transformer2DModel,
        config=_SD3 | {"pos_embed_max_size": 384, "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm"},
        repositories=("stabilityai/stable-diffusion-3.5-medium",),
    ),
    "FLUX.1-dev": PublicModel(
        transformer=diffusers.FluxTransformer2DModel,
        config={"guidance_embeds": True},
        repositories=("black-forest-labs/FLUX.1-dev",),
    ),
    "FLUX.2-dev": PublicModel(
        transformer=diffusers.Flux2Transformer2DModel, config={}, repositories=("black-forest-labs/FLUX.2-dev",)
    ),
    "PixArt-Sigma-XL/2": PublicModel(
        transformer=diffusers.PixArtTransformer2DModel,
        config=_XL
        | {
            "cross_attention_dim": 1152,
            "sample_size": 128,
            "interpolation_scale": 2,
            "caption_channels": 4096,
            "use_additional_conditions": False,
        },
        repositories=("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",),
    ),
    "Hunyuan-DiT v1.2": PublicModel(
        transformer=diffusers.HunyuanDiT2DModel,
        config={
            "in_channels": 4,
            "patch_size": 2,
            "sample_size": 128,
            "hidden_size": 1408,
            "num_layers": 40,
            "mlp_ratio": 4.3637,
            "use_style_cond_and_image_meta_size": False,
        },
        repositories=("Tencent-Hunyuan/HunyuanDiT-v1.2-Diffusers",),
    ),
    "SANA-1.6B": PublicModel(
        transformer=diffusers.SanaTransformer2DModel,
        config={},
        compression=32,
        repositories=("Efficient-Large-Model/Sana_1600M_1024px_diffusers",),
    ),
    "DiT-XL/2": PublicModel(
        transformer=diffusers.DiTTransformer2DModel,
        config=_XL,
        repositories=("facebook/DiT-XL-2-256", "facebook/DiT-XL-2-512"),
    ),
} | {
    # Over VA-VAE f16d32 at 256 px: 16x16 tokens.
    f"LightningDiT-{size}/1": PublicModel(
        transformer=LightningDiT,
        config={"sample_size": 16, "patch_size": 1, "in_channels": 32, **arguments},
        compression=16,
    )
    for size, arguments in LIGHTNINGDIT_SIZES.items()
}
"""Name -> model."""


def public_model(pair: str) -> str | None:
    """Name in `PUBLIC` of a model's name or hub id; None where it is not known."""
    return next((name for name, model in PUBLIC.items() if pair == name or pair in model.repositories), None)


def known_model(name: str) -> PublicModel:
    """A model by its name or hub id.

    Raises:
        ValueError: it is not in the table.
    """
    known = public_model(name)
    if known is None:
        raise ValueError(f"There is no published model {name!r} in the table; known are {', '.join(PUBLIC)}.")
    return PUBLIC[known]
