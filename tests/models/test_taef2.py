"""`AutoencoderTAEF2`: what it adds to diffusers' tiny autoencoder, and how it is stored."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from safetensors.torch import save_file

import davae
from conftest import assert_close
from davae import AutoencoderTAEF2
from davae.models.taef2 import PooledTinyBlock
from models.families import CHANNELS, calibrated, images, taef2, tiny


def pooled(half: torch.nn.Module) -> list[int]:
    return [index for index, layer in enumerate(half.layers) if isinstance(layer, PooledTinyBlock)]


@torch.no_grad()
def test_a_pooled_block_enriches_its_input() -> None:
    block, plain, x = PooledTinyBlock(8, "relu"), AutoencoderTinyBlock(8, 8, "relu"), torch.randn(2, 8, 5, 7)
    plain.load_state_dict({key: value for key, value in block.state_dict().items() if not key.startswith("pool.")})
    narrow, norm, _, wide = block.pool
    norm.weight.uniform_(0.5, 2)
    norm.bias.uniform_(-1, 1)
    hidden = torch.einsum("oi,bihw->bohw", narrow.weight[..., 0, 0], x).unflatten(1, (4, 8))  # 4 groups of 8 channels
    mean, variance = hidden.mean(dim=(2, 3, 4), keepdim=True), hidden.var(dim=(2, 3, 4), keepdim=True, correction=0)
    hidden = ((hidden - mean) / (variance + 1e-5).sqrt()).flatten(1, 2)
    hidden = (hidden * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)).relu()
    branch = torch.einsum("oi,bihw->bohw", wide.weight[..., 0, 0], hidden)
    kept = x.clone()
    assert_close(block(x), plain(x + branch), 1e-5)
    assert torch.equal(x, kept)
    assert narrow.bias is None
    assert wide.bias is None


def test_blocks_of_the_lowest_level_are_pooled() -> None:
    # encoder: conv, block, conv, block, conv, 2 blocks, conv; decoder: conv, act, 2 blocks, up, conv, block, up, ...
    assert pooled(taef2().encoder) == [5, 6]
    assert pooled(taef2().decoder) == [2, 3]
    with torch.device("meta"):
        full = AutoencoderTAEF2()
    assert pooled(full.encoder) == [11, 12, 13]
    assert pooled(full.decoder) == [2, 3, 4]
    assert len(full.encoder.layers) == 15
    assert sum(weight.numel() for weight in full.parameters()) == 2_677_027


@torch.no_grad()
def test_without_its_branches_it_is_a_tiny_autoencoder() -> None:
    model, plain, image = taef2(), tiny(), images()
    weights = model.state_dict()
    shared = {key: value for key, value in weights.items() if ".pool." not in key}
    assert shared.keys() == plain.state_dict().keys()
    plain.load_state_dict(shared)
    latent = model.encode(image).latents
    assert latent.shape == (2, CHANNELS, 8, 12)
    assert (latent - plain.encode(image).latents).abs().max() > 1e-3
    for half in (model.encoder, model.decoder):
        for index in pooled(half):
            half.layers[index].pool[-1].weight.zero_()
    assert_close(model.encode(image).latents, plain.encode(image).latents, 1e-5)
    assert_close(model.decode(latent).sample, plain.decode(latent).sample, 1e-5)


def test_other_depths_and_widths() -> None:
    widths = {"encoder_block_out_channels": (12, 12, 12), "decoder_block_out_channels": (16, 16, 16)}
    model = taef2(num_encoder_blocks=(1, 2, 3), num_decoder_blocks=(1, 2, 2), **widths)
    assert pooled(model.encoder) == [6, 7, 8]
    assert pooled(model.decoder) == [2]
    assert model.encoder.layers[6].pool[0].weight.shape == (48, 12, 1, 1)
    assert model.decoder.layers[2].pool[0].weight.shape == (64, 16, 1, 1)
    assert model.decode(model.encode(images()).latents).sample.shape == (2, 3, 32, 48)


def test_arguments_arrive() -> None:
    changes = {
        "latent_magnitude": 5,
        "latent_shift": 0.25,
        "scaling_factor": 0.5,
        "shift_factor": 0.1,
        "act_fn": "silu",
    }
    model = taef2(**changes)
    assert {key: model.config[key] for key in changes} == changes
    assert (model.latent_magnitude, model.latent_shift, model.scaling_factor) == (5, 0.25, 0.5)
    assert any(isinstance(layer, torch.nn.SiLU) for layer in model.encoder.modules())


def test_it_learns() -> None:
    model = taef2().train()
    model.decode(model.encode(images()).latents).sample.square().mean().backward()
    for half in (model.encoder, model.decoder):
        for index in pooled(half):
            assert all(weight.grad.any() for weight in half.layers[index].pool.parameters())


def test_its_config_is_that_of_the_public_weights() -> None:
    config = AutoencoderTAEF2().config
    assert config.latent_channels == 32
    assert 2 ** (len(config.block_out_channels) - 1) == 8  # as pipelines read the compression
    assert (config.scaling_factor, config.shift_factor) == (1.0, 0.0)
    assert isinstance(AutoencoderTAEF2(), AutoencoderTiny)
    assert AutoencoderTAEF2.__module__ == "davae"  # the stored name never moves


FRESH_PROCESS = """
import sys
from pathlib import Path
import davae
import torch
from safetensors.torch import load_file
folder = Path(sys.argv[1])
want = load_file(folder / "want.safetensors")
plain = davae.AutoencoderTAEF2.from_pretrained(folder / "plain")
model = davae.AutoencoderDA.from_pretrained(folder / "upgraded")
assert type(model.base_vae) is davae.AutoencoderTAEF2
pipe = davae.LightningDiTPipeline.from_pretrained(folder / "pipe")
assert type(pipe.vae) is davae.AutoencoderTAEF2
assert pipe.image_size == 16
with torch.no_grad():
    got = {
        "latent": plain.encode(want["image"]).latents,
        "picture": plain.decode(want["latent"]).sample,
        "joint": model.encode(want["image"]).latent_dist.mode(),
        "full picture": model.decode(want["joint"]).sample,
        "preview": model.preview(want["joint"]),
        "piped": pipe.vae.decode(want["latent"]).sample,
    }
for name, value in got.items():
    torch.testing.assert_close(value, want[name], rtol=1e-4, atol=1e-5)
"""


@torch.no_grad()
def test_a_fresh_process_loads_it_by_our_name_alone(tmp_path: Path) -> None:
    plain, image = taef2(), images()
    model = calibrated(plain, detail_channels=6)
    transformer = davae.LightningDiT(
        sample_size=4, in_channels=CHANNELS, hidden_size=16, num_layers=1, num_attention_heads=2, num_classes=3
    )
    pipe = davae.LightningDiTPipeline(plain, transformer, FlowMatchEulerDiscreteScheduler())
    plain.save_pretrained(tmp_path / "plain")
    model.save_pretrained(tmp_path / "upgraded")
    pipe.save_pretrained(tmp_path / "pipe")
    latent, joint = plain.encode(image).latents, model.encode(image).latent_dist.mode()
    want = {"image": image, "latent": latent, "joint": joint, "preview": model.preview(joint)}
    want |= {"picture": plain.decode(latent).sample, "full picture": model.decode(joint).sample}
    want["piped"] = want["picture"].clone()
    save_file({name: tensor.contiguous() for name, tensor in want.items()}, tmp_path / "want.safetensors")
    command = [sys.executable, "-c", FRESH_PROCESS, str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "will be ignored" not in answer.stderr  # every stored config entry is an argument


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saving_and_loading(tmp_path: Path, dtype: torch.dtype) -> None:
    plain = taef2().to(dtype)
    plain.save_pretrained(tmp_path)
    loaded = AutoencoderTAEF2.from_pretrained(tmp_path, torch_dtype=dtype)
    assert loaded.dtype == dtype
    for key, value in plain.config.items():
        assert loaded.config[key] == (list(value) if isinstance(value, tuple) else value)
    assert all(map(torch.equal, loaded.state_dict().values(), plain.state_dict().values()))
