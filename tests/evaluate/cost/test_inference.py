"""Cost of encoding, drawing and decoding against the same on real tensors."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLFlux2
from torch import Tensor

import davae
from davae.core.layout import LatentLayout
from davae.evaluate.cost.cost import Cost
from davae.evaluate.cost.flops import flop_counter
from davae.evaluate.cost.inference import decoding_cost, drawing_cost, encoding_cost
from davae.evaluate.cost.live_memory import LiveStorages
from davae.evaluate.cost.memory import size_of
from davae.evaluate.cost.training import training_flops
from davae.evaluate.cost.workload import Workload
from davae.models.adapter import adapt
from davae.train.diffusion import DiffusionTask
from davae.train.diffusion_settings import DiffusionConfig
from tiny_pair import tiny_autoencoder, tiny_transformer

SIDE, COUNT = 32, 3
SETTINGS = DiffusionConfig(steps=1, batch_size=1)


def upgraded() -> davae.AutoencoderDA:
    model = davae.AutoencoderDA.from_base(tiny_autoencoder(), detail_channels=8).eval()
    model.calibrate(torch.full((8,), 0.3), torch.full((8,), 1.7))
    return model


def cost(of: Callable[..., Cost], model: Any, precision: str = "fp32") -> Cost:
    return of("stage", model, SIDE, SIDE, at_once=COUNT, images=100, precision=precision)


@torch.no_grad()
def measured(model: Any, call: Callable[[Any, Tensor], object], shape: tuple[int, ...]) -> tuple[int, int]:
    """(peak beside the weights, FLOPs of one image) on real tensors."""
    with LiveStorages([*model.parameters(), *model.buffers()]) as live:
        call(model, torch.zeros(COUNT, *shape))
    with flop_counter() as counter:
        call(model, torch.zeros(1, *shape))
    return live.peak, counter.get_total_flops()


@pytest.mark.parametrize("make", [tiny_autoencoder, upgraded])
def test_encoding_and_decoding_cost_what_they_do(make: Callable[[], Any]) -> None:
    model = make()
    geometry = adapt(model)
    grid = SIDE // geometry.compression
    encoded = measured(model, lambda network, image: adapt(network).moments(image), (3, SIDE, SIDE))
    decoded = measured(
        model, lambda network, latent: adapt(network).decode(latent), (geometry.layout.channels, grid, grid)
    )
    for of, (peak, flops) in ((encoding_cost, encoded), (decoding_cost, decoded)):
        found = cost(of, model)
        assert found.memory.activations == pytest.approx(peak, rel=0.02)
        assert found.memory.parts.keys() == {"weights float32", "activations"}
        assert found.memory.weights["float32"] == sum(map(size_of, (*model.parameters(), *model.buffers())))
        assert (found.flops.forward, found.flops.backward) == (flops, 0)
        assert found.total_flops == 100 * flops


def test_tiles_need_less_memory() -> None:
    model = upgraded()
    whole = cost(encoding_cost, model)
    model.enable_tiling()
    model.tile_sample_min_size = 16
    assert cost(encoding_cost, model).memory.activations < 0.8 * whole.memory.activations


def test_an_untrained_upgrade_is_counted_as_a_trained_one() -> None:
    untrained = davae.AutoencoderDA.from_base(tiny_autoencoder(), detail_channels=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cost(decoding_cost, untrained) == cost(decoding_cost, upgraded())
    assert not untrained.is_calibrated


def test_statistics_of_a_batch_norm_need_no_values() -> None:
    with torch.device("meta"):
        flux2 = AutoencoderKLFlux2(
            block_out_channels=(8, 8, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4
        )
        wider = davae.AutoencoderDA.from_base(flux2, detail_channels=4)
    assert cost(decoding_cost, flux2).flops.forward > 0
    assert cost(decoding_cost, wider).flops.forward > 0
    assert flux2.config.batch_norm_eps is not None


def test_drawing_takes_a_prediction_a_step_and_two_with_guidance() -> None:
    model = tiny_transformer()
    work = Workload.of(model, 4, 4, 0)

    def drawn(steps: int, guided: bool) -> Cost:
        return drawing_cost(
            "sample", model, work, at_once=COUNT, images=6, steps=steps, guided=guided, precision="fp32"
        )

    def predict(network: Any, latent: Tensor) -> object:
        rows = len(latent)
        return network(latent, torch.zeros(rows), torch.zeros(rows, dtype=torch.int64))

    peak, _ = measured(model, predict, work.latent)  # no attention of the CPU is counted
    flops = training_flops(DiffusionTask(model, LatentLayout(4, 0), SETTINGS), work.batch(1), 0).forward
    once = drawn(1, guided=False)
    assert once.flops.forward == flops
    assert once.memory.activations == pytest.approx(peak, rel=0.05)
    assert drawn(5, guided=True).flops.forward == 10 * flops
    assert drawn(5, guided=True).memory.activations > 1.5 * once.memory.activations
