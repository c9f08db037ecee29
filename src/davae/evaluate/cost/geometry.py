"""Networks of published geometry on the meta device: the autoencoders of known transformers, LPIPS on its VGG16.

Nothing is downloaded and nothing takes memory. The autoencoders are those of the models' pages on the Hugging Face
hub; their parameter counts are in `tests/models/test_full_size.py`.
"""

from collections.abc import Callable
from typing import Any

import diffusers
import torch

from davae.backbones.public import known_model, public_model
from davae.models.lightningdit import LIGHTNINGDIT_SIZES
from davae.models.perceptual import LPIPS

_VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Widths of its convolutions, stage by stage; a pool stands between stages."""


def _kl(channels: int, **config: Any) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=channels,
        **config,
    )


def _vavae() -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4 + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 128, 256, 256, 512),
        layers_per_block=2,
        latent_channels=32,
        scaling_factor=1.0,
    )


def _dc_ae() -> diffusers.AutoencoderDC:
    blocks = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
    return diffusers.AutoencoderDC(
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        downsample_block_type="Conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41407,
    )


_PLAIN = {"use_quant_conv": False, "use_post_quant_conv": False}
_AUTOENCODERS: dict[str, Callable[[], Any]] = {
    **dict.fromkeys(
        ("SD3-Medium", "SD3.5-Medium"), lambda: _kl(16, scaling_factor=1.5305, shift_factor=0.0609, **_PLAIN)
    ),
    "FLUX.1-dev": lambda: _kl(16, scaling_factor=0.3611, shift_factor=0.1159, **_PLAIN),
    "FLUX.2-dev": diffusers.AutoencoderKLFlux2,
    **dict.fromkeys(("PixArt-Sigma-XL/2", "Hunyuan-DiT v1.2"), lambda: _kl(4, scaling_factor=0.13025)),
    "DiT-XL/2": lambda: _kl(4),
    "SANA-1.6B": _dc_ae,
    **dict.fromkeys((f"LightningDiT-{size}/1" for size in LIGHTNINGDIT_SIZES), _vavae),
}
"""Name in `PUBLIC` -> the autoencoder that the model was trained with."""


def public_autoencoder(model: str) -> Any:
    """The autoencoder of a published transformer, without weights.

    Args:
        model: its name in `davae.backbones.public`, or its id on the hub.

    Raises:
        ValueError: it is not in the table.
    """
    known_model(model)
    name = public_model(model)
    assert name is not None
    with torch.device("meta"):
        return _AUTOENCODERS[name]().eval()


def perceptual_network() -> LPIPS:
    """LPIPS without weights, as the tokenizer's training holds it."""
    vgg, linear = {}, {}
    layer, channels = 0, 3
    with torch.device("meta"):
        for stage, widths in enumerate(_VGG16):
            layer += stage > 0  # the pool
            for width in widths:
                vgg[f"features.{layer}.weight"] = torch.empty(width, channels, 3, 3)
                vgg[f"features.{layer}.bias"] = torch.empty(width)
                layer, channels = layer + 2, width  # a ReLU follows
            linear[f"lin{stage}.model.1.weight"] = torch.empty(1, channels, 1, 1)
        return LPIPS(vgg, linear)
