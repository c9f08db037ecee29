"""Tiny autoencoders of every family that `AutoencoderDA` can stand on, built from the real classes.

All have 4 latent channels and 4 pixels a side to a latent position.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderKLFlux2, AutoencoderTiny
from torch import Tensor

from davae import AutoencoderDA, AutoencoderTAEF2
from davae.models.blocks import DetailDownBlock, DetailUpBlock

CHANNELS = 4
COMPRESSION = 4
WIDTHS = (8, 8, 16)
_KL = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": WIDTHS,
    "layers_per_block": 1,
    "latent_channels": CHANNELS,
    "norm_num_groups": 4,
}
_TINY = {
    "latent_channels": CHANNELS,
    "encoder_block_out_channels": (8, 8, 8),
    "decoder_block_out_channels": (8, 8, 8),
    "num_encoder_blocks": (1, 1, 2),
    "num_decoder_blocks": (2, 1, 1),
}


def sd(**changes: Any) -> AutoencoderKL:
    """SD and SDXL: quant convs, a scale, no shift."""
    return AutoencoderKL(**(_KL | {"scaling_factor": 0.2} | changes)).eval()


def sd3(**changes: Any) -> AutoencoderKL:
    """SD3 and FLUX.1: no quant convs, a scale and a shift."""
    return sd(**({"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.06} | changes))


def vavae() -> AutoencoderKL:
    """VA-VAE: attention at the lowest level, statistics of each channel."""
    return sd(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
        latents_mean=[0.1, 0.0, -0.3, 1.0],
        latents_std=[1.0, 2.0, 0.5, 3.0],
    )


def flux2(**changes: Any) -> AutoencoderKLFlux2:
    """FLUX.2: statistics in a batch norm over latents packed 2x2."""
    base = AutoencoderKLFlux2(**(_KL | changes)).eval()
    base.bn.running_mean.uniform_(-1, 1)
    base.bn.running_var.uniform_(0.5, 3)
    return base


def dc() -> AutoencoderDC:
    """DC-AE: linear attention at the lowest level, shortcuts around head and stem."""
    types, layers, scales = ("ResBlock", "ResBlock", "EfficientViTBlock"), (0, 1, 1), ((), (), (3,))
    return AutoencoderDC(
        latent_channels=CHANNELS,
        attention_head_dim=8,
        encoder_block_types=types,
        decoder_block_types=types,
        encoder_block_out_channels=WIDTHS,
        decoder_block_out_channels=WIDTHS,
        encoder_layers_per_block=layers,
        decoder_layers_per_block=layers,
        encoder_qkv_multiscales=scales,
        decoder_qkv_multiscales=scales,
        scaling_factor=0.4,
    ).eval()


def tiny(**changes: Any) -> AutoencoderTiny:
    """TAESD and its like: a Sequential a half, no posterior, no norm."""
    return AutoencoderTiny(**(_TINY | changes)).eval()


def taef2(**changes: Any) -> AutoencoderTAEF2:
    """TAEF2: ours."""
    return AutoencoderTAEF2(**(_TINY | changes)).eval()


BASES: dict[str, Callable[..., Any]] = {
    "sd": sd,
    "sd3": sd3,
    "vavae": vavae,
    "flux2": flux2,
    "dc": dc,
    "tiny": tiny,
    "taef2": taef2,
}

NEW = {  # where the two new blocks stand, by class
    "AutoencoderKL": ("encoder.conv_out.", "decoder.conv_in."),
    "AutoencoderKLFlux2": ("encoder.conv_out.", "decoder.conv_in."),
    "AutoencoderDC": ("encoder.conv_out.", "decoder.conv_in."),
    "AutoencoderTiny": ("encoder.layers.7.", "decoder.layers.0."),
    "AutoencoderTAEF2": ("encoder.layers.7.", "decoder.layers.0."),
}


def down_block(model: AutoencoderDA) -> DetailDownBlock:
    """What stands in the place of the encoder's last convolution."""
    block = model.get_submodule(NEW[model.config.base_class][0].rstrip("."))
    assert isinstance(block, DetailDownBlock)
    return block


def up_block(model: AutoencoderDA) -> DetailUpBlock:
    """What stands in the place of the decoder's first convolution."""
    block = model.get_submodule(NEW[model.config.base_class][1].rstrip("."))
    assert isinstance(block, DetailUpBlock)
    return block


def latent_of(base: Any, image: Tensor) -> Tensor:
    """The raw latent of a plain autoencoder, as its class spells it."""
    encoded = base.encode(image)
    if isinstance(base, AutoencoderDC):
        return encoded.latent
    return encoded.latents if isinstance(base, AutoencoderTiny) else encoded.latent_dist.mode()


def shrink(image: Tensor, scale: int = 2) -> Tensor:
    """The base image."""
    return F.interpolate(image, scale_factor=1 / scale, mode="bicubic", align_corners=False)


def images(batch: int = 2, height: int = 32, width: int = 48) -> Tensor:
    """Noise in [-1, 1]."""
    return torch.rand(batch, 3, height, width) * 2 - 1


def smooth_images(batch: int = 2, height: int = 32, width: int = 48) -> Tensor:
    """Soft blobs in [-1, 1]."""
    blobs = torch.rand(batch, 3, height // 8, width // 8) * 2 - 1
    return F.interpolate(blobs, size=(height, width), mode="bicubic").clamp(-1, 1)


def calibrated(base: Any, batch: Tensor | None = None, **settings: Any) -> AutoencoderDA:
    """An upgrade whose detail statistics were measured on a batch."""
    model = AutoencoderDA.from_base(base, **settings).eval()
    with torch.no_grad():
        mean = model.moments(images() if batch is None else batch)[1]
    model.calibrate(mean.mean(dim=(0, 2, 3)), mean.std(dim=(0, 2, 3)))
    return model
