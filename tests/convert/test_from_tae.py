"""Tiny autoencoders: two files of Sequential indices, in any order."""

from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from davae import AutoencoderTAEF2
from davae.convert.from_tae import convert_tae, recognises
from davae.convert.keys import ConversionError

State = dict[str, Tensor]


class Block(nn.Module):
    """Their residual block, with or without the pooled branch."""

    def __init__(self, width: int, pooled: bool) -> None:
        super().__init__()

        def conv() -> nn.Conv2d:
            return nn.Conv2d(width, width, 3, padding=1)

        self.conv = nn.Sequential(conv(), nn.ReLU(), conv(), nn.ReLU(), conv())
        self.pool = None
        if pooled:
            wide = 4 * width
            self.pool = nn.Sequential(
                nn.Conv2d(width, wide, 1, bias=False),
                nn.GroupNorm(4, wide),
                nn.ReLU(),
                nn.Conv2d(wide, width, 1, bias=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.pool is None else x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class Clamp(nn.Module):
    """3 tanh(z / 3)."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(z / 3) * 3


def halves(width: int = 8, channels: int = 4, pooled: bool = False) -> tuple[nn.Sequential, nn.Sequential]:
    """f4, as the files' own class builds them: encoder of [0, 1] images, decoder to [0, 1] images."""

    def conv(inputs: int, outputs: int, **settings: Any) -> nn.Conv2d:
        return nn.Conv2d(inputs, outputs, 3, padding=1, **settings)

    def blocks(count: int, deep: bool = False) -> list[nn.Module]:
        return [Block(width, pooled and deep) for _ in range(count)]

    def up() -> list[nn.Module]:
        return [nn.Upsample(scale_factor=2), conv(width, width, bias=False)]

    down = {"stride": 2, "bias": False}
    encoder = nn.Sequential(
        *[conv(3, width), *blocks(1), conv(width, width, **down), *blocks(2)],
        *[conv(width, width, **down), *blocks(3, deep=True), conv(width, channels)],
    )
    decoder = nn.Sequential(
        *[Clamp(), conv(channels, width), nn.ReLU(), *blocks(3, deep=True), *up()],
        *[*blocks(2), *up(), *blocks(1), conv(width, 3)],
    )
    return encoder.eval(), decoder.eval()


@torch.no_grad()
@pytest.mark.parametrize("pooled", [False, True], ids=["plain", "pooled"])
def test_a_converted_tiny_autoencoder_computes_the_same(pooled: bool) -> None:
    encoder, decoder = halves(pooled=pooled)
    model, report = convert_tae(encoder.state_dict(), decoder.state_dict())
    assert type(model) is (AutoencoderTAEF2 if pooled else AutoencoderTiny)
    image = torch.rand(2, 3, 16, 24)
    latent = encoder(image)
    assert latent.shape == (2, 4, 4, 6)
    torch.testing.assert_close(model.encode(image * 2 - 1).latents, latent)
    torch.testing.assert_close(model.decode(3 * latent).sample, decoder(3 * latent) * 2 - 1)
    assert model.config.num_encoder_blocks == [1, 2, 3]
    assert model.config.num_decoder_blocks == [3, 2, 1]
    assert model.config.encoder_block_out_channels == [8, 8, 8]
    sources = {f"encoder:{key}" for key in encoder.state_dict()} | {f"decoder:{key}" for key in decoder.state_dict()}
    assert report.renamed.keys() == sources
    assert report.renamed["decoder:1.weight"] == "decoder.layers.0.weight"


@pytest.mark.parametrize("pooled", [False, True], ids=["plain", "pooled"])
def test_the_order_of_the_files_does_not_matter(pooled: bool) -> None:
    encoder, decoder = (half.state_dict() for half in halves(pooled=pooled))
    one, other = convert_tae(encoder, decoder)[0], convert_tae(decoder, encoder)[0]
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def test_halves_are_recognised() -> None:
    encoder, decoder = (half.state_dict() for half in halves(pooled=True))
    assert recognises(encoder)
    assert recognises(decoder)
    assert not recognises({**encoder, "decoder.conv_in.weight": torch.zeros(1)})
    assert not recognises({})


def test_two_of_the_same_half_are_refused() -> None:
    encoder, decoder = (half.state_dict() for half in halves())
    with pytest.raises(ConversionError, match="Both files are encoders"):
        convert_tae(encoder, encoder)
    with pytest.raises(ConversionError, match="Both files are decoders"):
        convert_tae(decoder, decoder)


def test_halves_of_different_models_are_refused() -> None:
    encoder, _ = (half.state_dict() for half in halves(channels=4))
    _, decoder = (half.state_dict() for half in halves(channels=16))
    with pytest.raises(ConversionError, match="encoder makes 4 latent channels, the decoder takes 16"):
        convert_tae(encoder, decoder)


def test_missing_unexpected_and_misshapen_keys_are_named() -> None:
    encoder, decoder = (half.state_dict() for half in halves())
    del decoder["3.conv.0.bias"]
    encoder["1.skip.weight"] = torch.zeros(8, 8, 1, 1)
    encoder["4.conv.2.weight"] = torch.zeros(8, 9, 3, 3)
    with pytest.raises(ConversionError) as error:
        convert_tae(encoder, decoder)
    assert "1 missing (decoder.layers.2.conv.0.bias)" in str(error.value)
    assert "1 unexpected (encoder:1.skip.weight)" in str(error.value)
    assert "1 misshapen (encoder:4.conv.2.weight [8, 9, 3, 3], expected [8, 8, 3, 3])" in str(error.value)


def test_a_branch_at_one_half_alone_is_no_known_model() -> None:
    encoder, decoder = halves(pooled=True)[0].state_dict(), halves(pooled=False)[1].state_dict()
    with pytest.raises(ConversionError, match=r"12 missing \(decoder\.layers\.2\.pool\.0\.weight"):
        convert_tae(encoder, decoder)


def test_a_file_without_convolutions_is_explained() -> None:
    encoder, _ = (half.state_dict() for half in halves())
    with pytest.raises(ConversionError, match="has a first and a last convolution"):
        convert_tae(encoder, {"1.weight": torch.zeros(8, 4, 3, 3)})
