"""Guidance and the sampling loop against the reference's."""

from collections.abc import Callable

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from conftest import assert_close
from davae.core.flow import sigma_shift
from davae.models.lightningdit import LightningDiT
from davae.sampling.denoise import denoise, draw_noise
from davae.sampling.guidance import guide_all, guide_first, in_interval


def reference(tensors: dict[str, Tensor]) -> LightningDiT:
    model = LightningDiT(8, 1, 8, hidden_size=48, num_layers=2, num_attention_heads=4, num_classes=10).eval()
    model.load_state_dict(
        {key.removeprefix("weights."): value for key, value in tensors.items() if "weights." in key}
    )
    return model


def velocity_of(model: LightningDiT) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda noisy, time, labels: model(noisy, time, labels).sample


@pytest.mark.parametrize("case", ["cfg_all", "cfg_all_interval", "cfg_first3", "cfg_first3_interval"])
@torch.no_grad()
def test_guided_velocity_is_the_references(golden, case: str) -> None:
    tensors = golden("lightningdit_a_base")
    model, scale = reference(tensors), tensors["in.cfg_scale"].item()
    guide = guide_all if "all" in case else guide_first(3)
    interval = (tensors["in.cfg_interval_start"].item() if "interval" in case else 0.0, 1.0)
    noisy = tensors["in.cfg_x"][:2].repeat(2, 1, 1, 1)
    for index, time in enumerate(tensors["in.cfg_t"].tolist()):
        predicted = model(noisy, torch.full((4,), time), tensors["in.cfg_y"]).sample
        conditional, unconditional = predicted.chunk(2)
        guided = guide(conditional, unconditional, scale) if in_interval(time, interval) else conditional
        # The reference's second half is its unconditional copy, which no one looks at.
        assert_close(guided, tensors[f"out.{case}"][index, :2])


@torch.no_grad()
def test_sampling_with_guidance_is_the_references(golden) -> None:
    tensors = golden("lightningdit_a_base")
    labels, null_labels = tensors["in.cfg_y"].chunk(2)
    got = denoise(
        velocity_of(reference(tensors)),
        tensors["in.sample_z"],
        labels,
        null_labels,
        FlowMatchEulerDiscreteScheduler(shift=sigma_shift(0.3)),
        num_steps=9,
        guidance_scale=tensors["in.cfg_scale"].item(),
        guidance_interval=(tensors["in.cfg_interval_start"].item(), 1.0),
    )
    assert_close(got, tensors["out.sample_cfg"])


def test_scale_one_is_conditional_and_zero_unconditional() -> None:
    conditional, unconditional = torch.randn(2, 2, 5, 3, 3)
    for guide in (guide_all, guide_first(3)):
        assert_close(guide(conditional, unconditional, 1.0), conditional, 1e-6)
    assert torch.equal(guide_all(conditional, unconditional, 0.0), unconditional)
    guided = guide_first(3)(conditional, unconditional, 4.0)
    assert torch.equal(guided[:, 3:], conditional[:, 3:])
    assert torch.equal(guided[:, :3], guide_all(conditional, unconditional, 4.0)[:, :3])


def test_interval_includes_its_ends() -> None:
    answers = [in_interval(time, (0.25, 0.75)) for time in (0.2499, 0.25, 0.5, 0.75, 0.7501)]
    assert answers == [False, True, True, True, False]


def test_model_is_asked_twice_only_where_guidance_is_on() -> None:
    asked: list[tuple[float, int]] = []

    def field(noisy: Tensor, time: Tensor, _labels: Tensor) -> Tensor:
        asked.append((round(time[0].item(), 6), len(noisy)))
        return torch.zeros_like(noisy)

    def run(scale: float) -> list[tuple[float, int]]:
        asked.clear()
        labels = torch.zeros(3, dtype=torch.int64)
        scheduler = FlowMatchEulerDiscreteScheduler()
        denoise(field, torch.zeros(3, 2, 2, 2), labels, labels + 9, scheduler, 4, scale, (0.5, 1.0))
        return list(asked)

    assert run(2.0) == [(0.0, 3), (0.25, 3), (0.5, 6), (0.75, 6)]
    assert run(1.0) == [(0.0, 3), (0.25, 3), (0.5, 3), (0.75, 3)]


def test_time_stays_exact_for_half_precision_latents() -> None:
    # In bfloat16 neighbouring steps near the noise would share one time.
    times: list[float] = []

    def field(noisy: Tensor, time: Tensor, _labels: Tensor) -> Tensor:
        times.append(time[0].item())
        return torch.zeros_like(noisy)

    labels = torch.zeros(1, dtype=torch.int64)
    latents = torch.zeros(1, 2, 2, 2, dtype=torch.bfloat16)
    denoise(field, latents, labels, labels, FlowMatchEulerDiscreteScheduler(shift=sigma_shift(0.3)), 250)
    assert len(set(times)) == 250
    grid = torch.linspace(0, 1, 251)[:-1]
    assert_close(torch.tensor(times), 0.3 * grid / (1 - 0.7 * grid), 1e-5)


def test_the_state_stays_float32_whatever_the_model_computes_in() -> None:
    # A constant field of 1/3: in bfloat16 the sum over 100 steps would be off by more than a percent.
    def field(noisy: Tensor, _time: Tensor, _labels: Tensor) -> Tensor:
        return torch.full_like(noisy, 1 / 3, dtype=torch.bfloat16)

    labels = torch.zeros(1, dtype=torch.int64)
    start = torch.full((1, 1, 1, 1), 3.0, dtype=torch.bfloat16)
    end = denoise(field, start, labels, labels, FlowMatchEulerDiscreteScheduler(), 100)
    assert end.dtype == torch.float32
    assert_close(end, torch.full_like(end, 3 + torch.tensor(1 / 3, dtype=torch.bfloat16).item()), 1e-5)


def test_noise_of_an_image_does_not_depend_on_its_batch_or_on_later_channels() -> None:
    wide = draw_noise([7, 8, 9], (6, 4, 4))
    assert torch.equal(draw_noise([9, 7], (6, 4, 4)), wide[[2, 0]])
    assert torch.equal(draw_noise([7, 8, 9], (4, 4, 4)), wide[:, :4])
