"""Tiles of an `AutoencoderDA`: detail encoder, base encoder, decoder and preview over every family."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import assert_close
from davae.models.tiling import tile_starts
from models.families import BASES, CHANNELS, COMPRESSION, calibrated, images, latent_of, shrink

GLOBAL = ("AutoencoderKL", "AutoencoderKLFlux2")  # group norms and attention see the tile alone


@pytest.fixture(params=BASES)
def base(request: pytest.FixtureRequest) -> Any:
    return BASES[request.param]()


def assert_alike(got: Tensor, want: Tensor, base: Any) -> None:
    """Equal up to what a network without the rest of the image cannot know. Chance would be above 1."""
    assert got.shape == want.shape
    assert not torch.equal(got, want)
    error = (got - want).abs().mean() / want.abs().mean()
    assert error < (0.6 if type(base).__name__ in GLOBAL else 0.2), error


@torch.no_grad()
def test_a_base_image_of_one_tile_stays_as_it_is(base: Any) -> None:
    model, image = calibrated(base), images(1, 160, 96)
    latent = model.encode(image).latent_dist.mode()
    picture, preview = model.decode(latent).sample, model.preview(latent)
    model.enable_tiling()
    model.tile_sample_min_size = 80
    tiled = model.encode(image).latent_dist.mode()
    assert torch.equal(tiled[:, :CHANNELS], latent[:, :CHANNELS])
    assert torch.equal(tiled[:, :CHANNELS], latent_of(model.base_vae, shrink(image)))
    assert torch.equal(model.preview(latent), preview)
    assert_alike(tiled[:, CHANNELS:], latent[:, CHANNELS:], base)
    assert_alike(model.decode(latent).sample, picture, base)


@torch.no_grad()
def test_a_larger_base_image_is_tiled_too(base: Any) -> None:
    model, image = calibrated(base), images(1, 224, 96)
    latent = model.encode(image).latent_dist.mode()
    preview = model.preview(latent)
    model.enable_tiling()
    model.tile_sample_min_size = 80
    tiled = model.encode(image).latent_dist.mode()
    assert_alike(tiled[:, :CHANNELS], latent[:, :CHANNELS], base)
    assert_alike(model.preview(latent), preview, base)
    posterior = model.encode(image).latent_dist
    assert not posterior.std[:, :CHANNELS].any()


class _Starts:
    """Records where the tiles of an image of coordinates begin."""

    def __init__(self, module: nn.Module) -> None:
        self.rows: set[float] = set()
        self.columns: set[float] = set()
        self.sizes: set[tuple[int, int]] = set()
        module.register_forward_pre_hook(self)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        corner = inputs[0][0, :, 0, 0] * 1024
        self.rows.add(corner[0].item())
        self.columns.add(corner[1].item())
        self.sizes.add(tuple(inputs[0].shape[-2:]))


@pytest.mark.parametrize("size", [50, 61, 64])
@torch.no_grad()
def test_tiles_begin_on_the_latent_grid(size: int) -> None:
    model = calibrated(BASES["tiny"]())
    rows, columns = torch.meshgrid(torch.arange(184.0), torch.arange(152.0), indexing="ij")
    image = torch.stack([rows, columns, 0 * rows])[None] / 1024
    model.enable_tiling()
    model.tile_sample_min_size = size
    full, small = _Starts(model.encoder), _Starts(model.base_vae.encoder)
    posterior = model.encode(image).latent_dist
    assert posterior.mode().shape == (1, 2 * CHANNELS, 23, 19)
    for seen, unit, to_position in (
        (full, 2 * COMPRESSION, lambda value: value),
        (small, COMPRESSION, lambda value: (value - 0.5) / 2),  # a base pixel lies between two pixels
    ):
        tile = size // unit
        assert seen.sizes == {(tile * unit, tile * unit)}
        for length, values in ((23, seen.rows), (19, seen.columns)):
            want = tile_starts(length, tile, tile // 4)
            assert len(want) > 1
            assert sorted(to_position(value) / unit for value in values) == pytest.approx(want, abs=0.1)


@torch.no_grad()
def test_tiles_and_slices_together() -> None:
    model, image = calibrated(BASES["tiny"]()), images(2, 96, 128)
    model.enable_tiling()
    model.tile_sample_min_size = 48
    latent = model.encode(image).latent_dist.mode()
    picture = model.decode(latent).sample
    model.enable_slicing()
    assert_close(model.encode(image).latent_dist.mode(), latent, 1e-5)
    assert_close(model.decode(latent).sample, picture, 1e-5)
