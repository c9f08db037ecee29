"""Networks of published geometry: the right sizes, and no memory."""

import pytest
import torch

from davae.backbones.public import PUBLIC
from davae.evaluate.cost.geometry import perceptual_network, public_autoencoder
from davae.models.adapter import adapt

PARAMETERS = {
    "SD3.5-Medium": 83_819_683,
    "FLUX.1-dev": 83_819_683,
    "FLUX.2-dev": 84_046_115,
    "PixArt-Sigma-XL/2": 83_653_863,
    "LightningDiT-XL/1": 69_836_067,
    "SANA-1.6B": 312_250_275,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_autoencoders_have_the_published_sizes(name: str) -> None:
    autoencoder = public_autoencoder(name)
    assert sum(weight.numel() for weight in autoencoder.parameters()) == PARAMETERS[name]
    assert {weight.device.type for weight in autoencoder.parameters()} == {"meta"}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_published_transformer_has_its_autoencoder(name: str) -> None:
    assert adapt(public_autoencoder(name)).compression == PUBLIC[name].compression


def test_hub_ids_are_known_and_others_refused() -> None:
    assert public_autoencoder("stabilityai/stable-diffusion-3.5-medium").config.latent_channels == 16
    with pytest.raises(ValueError, match="no published model"):
        public_autoencoder("SD9")


def test_lpips_has_the_convolutions_of_vgg16() -> None:
    network = perceptual_network()
    assert sum(weight.numel() for weight in network.features.parameters()) == 14_714_688
    assert [len(weight) for weight in network.linear] == [64, 128, 256, 512, 512]
    images = torch.empty(2, 3, 32, 32, device="meta")
    assert network(images, images).shape == (2,)
