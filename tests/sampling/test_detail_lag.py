"""Base and detail stepped apart: Gaussians in closed form, and stock pipelines with the scheduler in place."""

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from torch import Tensor

import davae
from backbones.families import PIPELINES
from conftest import assert_close
from davae.core import flow
from davae.core.layout import LatentLayout
from davae.sampling.denoise import denoise
from davae.sampling.detail_lag import DetailLagScheduler, lagging

pytestmark = pytest.mark.filterwarnings("ignore:This AutoencoderDA has not been trained")
MEAN = torch.tensor([1.0, -2.0], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64)
"""Of one base and one detail channel that depend on each other."""


def gaussian_field(lag: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The exact velocity, E[data - noise | noisy], of channels each in its own time."""

    def field(noisy: Tensor, clock: Tensor, _labels: Tensor) -> Tensor:
        times = torch.diag(torch.stack(flow.clock_times(clock[0].double(), lag)))
        noise = torch.eye(2) - times
        gain = (COVARIANCE @ times - noise) @ torch.linalg.inv(times @ COVARIANCE @ times + noise @ noise)
        centred = noisy[:, :, 0, 0].double() - times @ MEAN
        return (MEAN + centred @ gain.T)[:, :, None, None].float()

    return field


def white_noise(count: int) -> Tensor:
    """Samples [count, 2, 1, 1] of mean 0 and covariance 1 exactly: what a linear field makes of them is too."""
    noise = torch.randn(count, 2, dtype=torch.float64)
    noise = noise - noise.mean(dim=0)
    root = torch.linalg.cholesky(noise.T.cov())
    return torch.linalg.solve_triangular(root, noise.T, upper=False).T[:, :, None, None]


def run(field: Any, scheduler: Any, latents: Tensor, steps: int, **settings: Any) -> Tensor:
    labels = torch.zeros(len(latents), dtype=torch.int64)
    return denoise(field, latents, labels, labels, scheduler, steps, **settings)


@pytest.mark.parametrize(("lag", "shift"), [(0.0, 1.0), (0.3, 1.0), (0.3, 3.0), (1.0, 1.0)])
def test_steps_apart_draw_the_joint_distribution(lag: float, shift: float) -> None:
    scheduler = DetailLagScheduler(1, 1, lag, shift=shift)
    states: list[Tensor] = []
    drawn = run(gaussian_field(lag), scheduler, white_noise(8), 120, on_step=lambda _, x: states.append(x))
    for step in (20, 60, 100, 119):  # every channel has the level of its own time on the way
        clock = flow.from_sigma(scheduler.sigmas[step + 1].double())
        times = torch.stack(flow.clock_times(clock, lag))
        want = (times**2 * COVARIANCE.diag() + (1 - times) ** 2).sqrt()
        assert_close(states[step][:, :, 0, 0].std(dim=0).double(), want, 0.05)
    samples = drawn[:, :, 0, 0].double()
    assert_close(samples.mean(dim=0), MEAN, 0.05)
    assert_close(samples.T.cov(), COVARIANCE, 0.05)


def field_of_weights(seed: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    matrix = torch.randn(6, 6, generator=torch.Generator().manual_seed(seed))
    return lambda noisy, time, _: torch.einsum("ij,bjhw->bihw", matrix, noisy.sin()) + time.view(-1, 1, 1, 1)


@pytest.mark.parametrize("settings", [{}, {"shift": 1 / 0.3}, {"use_karras_sigmas": True}])
def test_without_a_lag_every_step_is_the_stock_one_bit_for_bit(settings: dict[str, Any]) -> None:
    stock = FlowMatchEulerDiscreteScheduler(**settings)
    ours = DetailLagScheduler(4, 2, 0.0, **settings)
    noise = torch.randn(2, 6, 3, 3)
    want, got = (run(field_of_weights(0), scheduler, noise, 17) for scheduler in (stock, ours))
    assert torch.equal(got, want)
    assert torch.equal(ours.sigmas, stock.sigmas)
    assert torch.equal(ours.timesteps, stock.timesteps)
    assert lagging(stock, LatentLayout(4, 2), 0.0) is stock


def test_the_transformer_is_told_the_clock_and_the_base_arrives_first() -> None:
    asked: list[float] = []

    def field(noisy: Tensor, clock: Tensor, _labels: Tensor) -> Tensor:
        asked.append(float(clock[0]))
        return torch.ones_like(noisy)

    states = [torch.zeros(1, 3, 1, 1)]
    scheduler = DetailLagScheduler(2, 1, 0.5)
    run(field, scheduler, states[0], 6, on_step=lambda _, latents: states.append(latents))
    assert asked == pytest.approx([0, 0.25, 0.5, 0.75, 1.0, 1.25])
    moved = torch.cat(states)[:, :, 0, 0]
    assert_close(moved[:, 0], torch.tensor([0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0]), 1e-6)
    assert torch.equal(moved[:, 0], moved[:, 1])
    assert_close(moved[:, 2], torch.tensor([0, 0, 0, 0.25, 0.5, 0.75, 1.0]), 1e-6)
    assert scheduler.timesteps.diff().max() < 0  # pipelines and step caches find a step by its timestep


def test_guidance_stays_as_it_is_at_the_end_while_the_detail_finishes() -> None:
    rows: list[int] = []

    def field(noisy: Tensor, _clock: Tensor, _labels: Tensor) -> Tensor:
        rows.append(len(noisy))
        return torch.zeros_like(noisy)

    for interval, want in (((0.0, 1.0), [2] * 6), ((0.6, 1.0), [1, 1, 1, 2, 2, 2]), ((0.0, 0.6), [2, 2, 2, 1, 1, 1])):
        rows.clear()
        noise = torch.zeros(1, 3, 1, 1)
        run(field, DetailLagScheduler(2, 1, 0.5), noise, 6, guidance_scale=2.0, guidance_interval=interval)
        assert rows == want


def test_packed_tokens_are_stepped_as_their_latents() -> None:
    latents, velocity = torch.randn(2, 2, 6, 4, 4).unbind()
    pack = diffusers.FluxPipeline._pack_latents
    whole, packed = latents, pack(latents, 2, 6, 4, 4)
    first, second = DetailLagScheduler(4, 2, 0.4), DetailLagScheduler(4, 2, 0.4)
    for scheduler in (first, second):
        scheduler.set_timesteps(5)
    for time in first.timesteps:
        whole = first.step(velocity, time, whole).prev_sample
        (packed,) = second.step(pack(velocity, 2, 6, 4, 4), time, packed, return_dict=False)
    assert torch.equal(packed, pack(whole, 2, 6, 4, 4))
    assert_close(whole, latents - velocity, 1e-6)


def test_a_start_on_the_way_has_noise_by_channel() -> None:
    scheduler = DetailLagScheduler(1, 1, 0.5)
    scheduler.set_timesteps(sigmas=[1.0, 0.5, 0.25])
    data, noise = torch.full((1, 2, 1, 1), 2.0), torch.full((1, 2, 1, 1), -1.0)
    noisy = scheduler.scale_noise(data, scheduler.timesteps[1:2], noise).flatten()
    assert noisy.tolist() == pytest.approx([0.75 * 2 - 0.25, 0.25 * 2 - 0.75])


@pytest.mark.parametrize("name", ["sd3", "flux", "sana"])
@torch.no_grad()
def test_stock_pipelines_draw_the_base_first(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = davae.upgrade(PIPELINES[name].make(), scale=2, init="random")
    pipe.set_progress_bar_config(disable=True)
    layout = pipe.vae.layout
    pipe.register_modules(scheduler=lagging(pipe.scheduler, layout, 1.0))
    states: list[Tensor] = []

    def keep(pipe: Any, _step: int, _time: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        latents, side = tensors["latents"], 64
        states.append(pipe._unpack_latents(latents, side, side, pipe.vae_scale_factor) if name == "flux" else latents)
        return {}

    PIPELINES[name].draw(pipe, num_inference_steps=4, output_type="latent", callback_on_step_end=keep)
    base, detail = zip(*(layout.split(state) for state in states), strict=True)
    assert torch.equal(detail[0], detail[1])
    assert not torch.equal(base[0], base[1])
    assert torch.equal(base[-2], base[-1])
    assert not torch.equal(detail[-2], detail[-1])
    assert all(state.isfinite().all() for state in states)


def test_the_pairs_scheduler_keeps_its_settings() -> None:
    layout = LatentLayout(4, 6)
    dynamic = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, max_shift=1.3)
    got = lagging(dynamic, layout, 0.2)
    assert {name: got.config[name] for name in dynamic.config if not name.startswith("_")} == {
        name: value for name, value in dynamic.config.items() if not name.startswith("_")
    }
    assert (got.config["base_channels"], got.config["detail_channels"], got.config["detail_lag"]) == (4, 6, 0.2)
    solver = DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    assert lagging(solver, layout, 0.2).config["shift"] == 3.0


def test_what_cannot_be_stepped_apart_is_refused() -> None:
    with pytest.raises(ValueError, match="got a FlowMatchHeunDiscreteScheduler, allowed is a FlowMatchEuler"):
        lagging(FlowMatchHeunDiscreteScheduler(), LatentLayout(4, 4), 0.2)
    with pytest.raises(ValueError, match="must be between 0 and 1; got 1.5"):
        DetailLagScheduler(4, 4, 1.5)
    with pytest.raises(ValueError, match="Leave them false"):
        DetailLagScheduler(4, 4, 0.1, stochastic_sampling=True)
    scheduler = DetailLagScheduler(4, 4, 0.1)
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match=r"latents of 8 channels \(4 base \+ 4 detail\); got shape \(1, 4, 2, 2\)"):
        scheduler.step(torch.zeros(1, 4, 2, 2), scheduler.timesteps[0], torch.zeros(1, 4, 2, 2))
