"""Widened transformers against the reference's checkpoints and branch heads."""

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor

import davae
from backbones.transformers import SD3_CONFIG
from conftest import assert_close
from davae.models.lightningdit import LightningDiT


def test_lightningdit_adapts_as_the_reference(golden) -> None:
    tensors = golden("zero_pad")
    model = LightningDiT(4, 1, 6, hidden_size=32, num_layers=1, num_attention_heads=2, num_classes=10).eval()
    model.load_state_dict({k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")})
    arguments = tensors["in.x"], tensors["in.t"], tensors["in.y"]
    with torch.no_grad():
        widened = davae.widen(model, detail_channels=18)
        assert_close(widened(*arguments).sample, tensors["out.adapted_forward"])
        assert_close(widened(*arguments).sample[:, :6], tensors["out.base_forward"])
        repeated = davae.widen(model, detail_channels=18, init="repeat")
        assert_close(repeated(*arguments).sample, tensors["out.repeat_average_forward"])
    state = widened.state_dict()
    for key, value in tensors.items():
        if key.startswith("out.adapted."):
            assert torch.equal(state[key.removeprefix("out.adapted.")], value), key


def reference_sd3(tensors: dict[str, Tensor]) -> SD3Transformer2DModel:
    model = SD3Transformer2DModel(**SD3_CONFIG).eval()
    prefix = "weights.plain_transformer."
    model.load_state_dict({key.removeprefix(prefix): value for key, value in tensors.items() if prefix in key})
    return model


def run_sd3(model: SD3Transformer2DModel, tensors: dict[str, Tensor], latent: Tensor) -> Tensor:
    names = ("encoder_hidden_states", "pooled_projections", "timestep")
    with torch.no_grad():
        return model(latent, **{name: tensors[f"in.{name}"] for name in names}).sample


def base_first(latent: Tensor) -> Tensor:
    """The reference keeps [extra | base] here."""
    return torch.cat([latent[:, 4:], latent[:, :4]], dim=1)


def test_sd3_starts_as_the_reference(golden) -> None:
    tensors = golden("sd3_heads")
    model = reference_sd3(tensors)
    latent = base_first(tensors["in.x"])
    assert_close(run_sd3(model, tensors, latent[:, :4]), tensors["out.plain"])
    widened = davae.widen(model, detail_channels=4)
    assert_close(run_sd3(widened, tensors, latent), base_first(tensors["out.wrapper_at_init"]))
    latent[:, 4:] = 50 * torch.randn_like(latent[:, 4:])
    assert_close(run_sd3(widened, tensors, latent)[:, :4], tensors["out.plain"], 1e-5)


def test_sd3_branches_of_the_reference_are_one_wider_layer(golden) -> None:
    tensors = golden("sd3_heads")
    widened = davae.widen(reference_sd3(tensors), detail_channels=4)
    embed, head = "weights.tokenizer_patch_embed", "weights.project_out"
    kernels = [tensors[f"{embed}.proj.{part}_conv.weight"] for part in ("base", "extra")]
    biases = [tensors[f"{embed}.proj.{part}_conv.bias"] for part in ("base", "extra")]
    widened.pos_embed.proj.weight.data = torch.cat(kernels, dim=1)
    widened.pos_embed.proj.bias.data = biases[0] + biases[1]
    widened.pos_embed.pos_embed.data = tensors[f"{embed}.pos_embed"]
    for kind in ("weight", "bias"):
        rows = [tensors[f"{head}.{part}_linear.{kind}"].unflatten(0, (4, 4)) for part in ("base", "extra")]
        getattr(widened.proj_out, kind).data = torch.cat(rows, dim=1).flatten(0, 1)
    got = run_sd3(widened, tensors, base_first(tensors["in.x"]))
    assert_close(got, base_first(tensors["out.wrapper"]))
