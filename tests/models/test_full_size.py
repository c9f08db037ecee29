"""The public autoencoders at their own size, without memory: shapes, compressions, parameter counts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderKLFlux2, AutoencoderTiny
from torch import nn

from davae import AutoencoderDA, AutoencoderTAEF2


def kl(latent_channels: int, quant_convs: bool) -> AutoencoderKL:
    """SD, SDXL, SD3 and FLUX.1 differ in these two."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=latent_channels,
        use_quant_conv=quant_convs,
        use_post_quant_conv=quant_convs,
    )


def vavae() -> AutoencoderKL:
    """VA-VAE f16d32."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4 + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 128, 256, 256, 512),
        layers_per_block=2,
        latent_channels=32,
    )


def dc() -> AutoencoderDC:
    """DC-AE f32c32, of SANA."""
    types = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
    widths, scales = (128, 256, 512, 512, 1024, 1024), ((), (), (), (5,), (5,), (5,))
    return AutoencoderDC(
        latent_channels=32,
        encoder_block_types=types,
        decoder_block_types=types,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=(2, 2, 2, 3, 3, 3),
        decoder_layers_per_block=(3, 3, 3, 3, 3, 3),
        encoder_qkv_multiscales=scales,
        decoder_qkv_multiscales=scales,
        upsample_block_type="interpolate",
        downsample_block_type="Conv",
    )


# base, its parameters, D, f s, weights of the down block's and of the up block's convolution
SIZES: dict[str, tuple[Callable[[], Any], int, int, int, tuple[int, int], tuple[int, int]]] = {
    "SD and SDXL": (lambda: kl(4, True), 83_653_863, 4, 16, (2, 512), (2048, 8)),
    "SD3 and FLUX.1": (lambda: kl(16, False), 83_819_683, 16, 16, (8, 512), (2048, 32)),
    "VA-VAE": (vavae, 69_836_067, 96, 32, (48, 512), (2048, 128)),
    "FLUX.2": (AutoencoderKLFlux2, 84_046_115, 32, 16, (16, 512), (2048, 64)),
    "DC-AE": (dc, 312_250_275, 32, 64, (16, 1024), (4096, 64)),
    "TAESD": (AutoencoderTiny, 2_445_063, 4, 16, (2, 64), (256, 8)),
    "TAEF2": (AutoencoderTAEF2, 2_677_027, 64, 16, (32, 64), (256, 96)),
}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def upgrade(make: Callable[[], Any], **settings: Any) -> AutoencoderDA:
    with torch.device("meta"):
        return AutoencoderDA.from_base(make(), **settings)


@pytest.mark.parametrize("name", SIZES)
def test_public_autoencoders(name: str) -> None:
    make, parameters, detail_channels, compression, down_shape, up_shape = SIZES[name]
    model = upgrade(make, detail_channels=detail_channels)
    base = model.base_vae
    assert count(base) == parameters
    assert model.compression == compression
    assert 2 ** (len(model.config.block_out_channels) - 1) == compression
    assert model.config.latent_channels == base.config.latent_channels + detail_channels
    down, up = model.family.head_of(model.encoder), model.decoder.get_submodule(model.family.stem(model.decoder))
    assert down.conv.weight.shape == (*down_shape, 3, 3)
    assert up.conv.weight.shape == (*up_shape, 3, 3)
    head, stem = model.family.head_of(base.encoder), base.decoder.get_submodule(model.family.stem(base.decoder))
    assert count(model.encoder) == count(base.encoder) - count(head) + count(down)
    assert count(model.decoder) == count(base.decoder) - count(stem) + count(up)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_f16c32_of_sd3() -> None:
    model = upgrade(lambda: kl(16, False), detail_channels=16)
    assert model.compression == 16
    assert model.config.latent_channels == 32
    assert len(model.config.block_out_channels) == 5
    down, up = model.encoder.conv_out, model.decoder.conv_in
    assert down.conv.weight.shape == (8, 512, 3, 3)
    assert up.conv.weight.shape == (2048, 32, 3, 3)
    assert count(down) == 36_872
    assert count(up) == 591_872
    assert down.shortcut_proj is None
    assert up.shortcut_proj is None


def test_f32c128_of_vavae() -> None:
    model = upgrade(vavae, detail_channels=96)
    assert model.compression == 32
    assert model.config.latent_channels == 128
    down, up = model.encoder.conv_out, model.decoder.conv_in
    assert down.conv.weight.shape == (48, 512, 3, 3)
    assert down.shortcut_proj.weight.shape == (192, 2048, 1, 1)
    assert up.conv.weight.shape == (2048, 128, 3, 3)
    assert up.shortcut_proj is None
    assert count(down) == 614_448
    assert count(up) == 2_361_344
    assert count(model.base_vae.encoder) == 28_413_248
    assert count(model.base_vae.quant_conv) == 4_160
    # The reference counts 72,806,643 in its detail parts: it keeps the replaced convolutions, unused.
    unused = count(model.base_vae.encoder.conv_out) + count(model.base_vae.decoder.conv_in)
    assert count(model.encoder) + count(model.decoder) + unused == 72_806_643


def test_taef2_has_a_learned_shortcut_where_96_does_not_divide_256() -> None:
    model = upgrade(AutoencoderTAEF2, detail_channels=64)
    assert model.encoder.layers[-1].shortcut_proj is None  # 256 features to 128 moments
    assert model.decoder.layers[0].shortcut_proj.weight.shape == (256, 96, 1, 1)


def test_flux2_has_a_batch_norm_over_all_packed_channels() -> None:
    model = upgrade(AutoencoderKLFlux2, detail_channels=32)
    assert model.bn.num_features == 256
    assert model.config.batch_norm_eps == 1e-4


@pytest.mark.parametrize("name", ["SD3 and FLUX.1", "TAESD", "TAEF2"])
def test_a_warm_start_needs_no_memory(name: str) -> None:
    model = upgrade(SIZES[name][0], warm=True)
    assert model.family.head_of(model.encoder).shortcut_proj is not None


def test_scale_four_of_sd3() -> None:
    model = upgrade(lambda: kl(16, False), scale=4, detail_channels=48)
    assert model.compression == 32
    assert model.config.block_out_channels == [128, 256, 512, 512, 512, 512]
    assert model.encoder.conv_out.conv.weight.shape == (6, 512, 3, 3)
    assert model.decoder.conv_in.conv.weight.shape == (8192, 64, 3, 3)


def test_latents_of_an_image() -> None:
    model = upgrade(lambda: kl(16, False), detail_channels=16)
    model.calibrate(torch.zeros(16), torch.ones(16))
    with torch.device("meta"):
        base, mean, logvar = model.moments(torch.zeros(1, 3, 1024, 768))
        picture = model.decode(torch.zeros(1, 32, 64, 48)).sample
    assert base.shape == mean.shape == logvar.shape == (1, 16, 64, 48)
    assert picture.shape == (1, 3, 1024, 768)
