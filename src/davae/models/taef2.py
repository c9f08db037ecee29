"""TAEF2, the tiny autoencoder of FLUX.2's latent: diffusers' `AutoencoderTiny` with a wider lowest level.

diffusers 0.42 cannot hold it: at the lowest resolution its blocks carry one more branch, which looks at the whole
map through a group norm.
"""

from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from torch import Tensor, nn

from davae.models.diffusers_model import register_to_config


class PooledTinyBlock(AutoencoderTinyBlock):
    """A tiny block whose input is first enriched: y = block(x + pool(x)), [B, width, H, W] to the same shape."""

    def __init__(self, width: int, act_fn: str) -> None:
        super().__init__(width, width, act_fn)
        wide = 4 * width
        self.pool = nn.Sequential(
            nn.Conv2d(width, wide, kernel_size=1, bias=False),
            nn.GroupNorm(4, wide),
            nn.ReLU(inplace=True),
            nn.Conv2d(wide, width, kernel_size=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return super().forward(x + self.pool(x))


class AutoencoderTAEF2(AutoencoderTiny):
    """f8, 32 channels by default; images [B, 3, H, W] in [-1, 1], latents in the units of FLUX.2's autoencoder.

    `encode(x).latents` and `decode(z).sample` as in `AutoencoderTiny`; arguments as there. Weights come from
    `davae convert taef2_encoder.pth taef2_decoder.pth` (madebyollin/taesd).
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64),
        decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64),
        act_fn: str = "relu",
        upsample_fn: str = "nearest",
        latent_channels: int = 32,
        upsampling_scaling_factor: int = 2,
        num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3),
        num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1),
        latent_magnitude: int = 3,
        latent_shift: float = 0.5,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
        block_out_channels: tuple[int, ...] | None = None,
        force_upcast: bool = False,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            encoder_block_out_channels=encoder_block_out_channels,
            decoder_block_out_channels=decoder_block_out_channels,
            act_fn=act_fn,
            upsample_fn=upsample_fn,
            latent_channels=latent_channels,
            upsampling_scaling_factor=upsampling_scaling_factor,
            num_encoder_blocks=num_encoder_blocks,
            num_decoder_blocks=num_decoder_blocks,
            latent_magnitude=latent_magnitude,
            latent_shift=latent_shift,
            scaling_factor=scaling_factor,
            shift_factor=shift_factor,
        )
        last = len(self.encoder.layers) - 1  # the blocks of the lowest level stand before the last convolution
        for index in range(last - num_encoder_blocks[-1], last):
            self.encoder.layers[index] = PooledTinyBlock(encoder_block_out_channels[-1], act_fn)
        for index in range(2, 2 + num_decoder_blocks[0]):  # and after the first one and its activation
            self.decoder.layers[index] = PooledTinyBlock(decoder_block_out_channels[0], act_fn)


# The stored name in model_index.json, as for AutoencoderDA.
AutoencoderTAEF2.__module__ = "davae"
