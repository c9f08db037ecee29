"""What a frozen transformer sees: the tokens behind a block, of latents at native times, without a class."""

import copy
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from backbones.transformers import dit_transformer, lightning
from davae.backbones.features import BlockFeatures, require_features
from davae.backbones.registry import BACKBONES
from davae.core.flow import interpolate


def tokens_behind(block: Any, call: Any) -> Tensor:
    """What a block of a whole transformer gives when it is called."""
    seen: list[Tensor] = []
    hook = block.register_forward_hook(lambda _module, _given, output: seen.append(output))
    with torch.no_grad():
        call()
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("block", [1, 2])
def test_lightningdit_is_seen_at_its_native_time(block: int) -> None:
    model, noisy, time = lightning(), torch.randn(3, 6, 4, 4), torch.tensor([0.1, 0.5, 0.9])
    want = tokens_behind(model.blocks[block - 1], lambda: model(noisy, time, torch.full((3,), model.null_class)))
    found = BlockFeatures(copy.deepcopy(model), block)(noisy, time)
    assert found.shape == (3, 16, 32)
    torch.testing.assert_close(found, want)


def test_dit_is_seen_at_the_step_with_the_same_share_of_noise() -> None:
    model, steps = dit_transformer(), torch.tensor([20, 400, 900])
    data, noise = torch.randn(2, 3, 4, 8, 8)
    kept = DDPMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02).alphas_cumprod[steps]
    signal, spread = (value.sqrt().view(-1, 1, 1, 1) for value in (kept, 1 - kept))
    no_class = torch.full((3,), model.config.num_embeds_ada_norm)
    on_its_path = signal * data + spread * noise
    want = tokens_behind(
        model.transformer_blocks[0], lambda: model(on_its_path, timestep=steps, class_labels=no_class)
    )
    time = (signal / (signal + spread)).flatten()
    found = BlockFeatures(copy.deepcopy(model), 1)(interpolate(data, noise, time), time)
    torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-4)


def test_what_is_behind_the_block_is_gone_and_the_rest_stands_still() -> None:
    features = BlockFeatures(lightning(), 1)
    assert len(features.transformer.blocks) == 1
    assert not any(weight.requires_grad for weight in features.transformer.parameters())
    noisy = torch.randn(2, 6, 4, 4, requires_grad=True)
    features(noisy, torch.tensor([0.3, 0.6])).square().sum().backward()
    assert noisy.grad.abs().amax(dim=(1, 2, 3)).min() > 0
    assert not features.transformer.blocks[0]._forward_hooks


def test_blocks_that_are_not_there_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"tokens inside a SD3Transformer2DModel .*DiTTransformer2DModel, LightningDiT"
    ):
        require_features(BACKBONES["SD3Transformer2DModel"], {}, 1)
    with pytest.raises(ValueError, match="one of the 2 blocks of this LightningDiT, counted from 1; got 3"):
        BlockFeatures(lightning(), 3)
