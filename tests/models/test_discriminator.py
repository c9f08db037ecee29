"""PatchGAN against the reference's dependency."""

import torch
from torch import nn

from conftest import assert_close
from davae.models.discriminator import PatchDiscriminator


def test_logits_are_the_references(golden) -> None:
    tensors = golden("patchgan")
    model = PatchDiscriminator(width=4)
    weights = {key.removeprefix("weights."): value for key, value in tensors.items() if "weights." in key}
    model.load_state_dict(weights, strict=True)
    assert_close(model.eval()(tensors["in.x"]), tensors["out.logits_eval"])
    assert_close(model.train()(tensors["in.x"]), tensors["out.logits_train"])
    for name in ("running_mean", "running_var"):
        assert_close(model.state_dict()[f"main.3.{name}"], tensors[f"out.{name}_after.main.3"])


def test_receptive_field_is_70_pixels() -> None:
    model = PatchDiscriminator(width=4).eval()
    image = torch.randn(1, 3, 128, 128, requires_grad=True)
    logits = model(image)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    touched = image.grad.abs().sum(dim=(0, 1))
    assert int((touched.sum(dim=0) > 0).sum()) == int((touched.sum(dim=1) > 0).sum()) == 70


def test_fresh_weights_are_the_papers() -> None:
    model = PatchDiscriminator(width=32)
    assert abs(model.main[5].weight.std().item() - 0.02) < 1e-3
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 3
    assert all(not norm.bias.any() and 0.9 < norm.weight.mean() < 1.1 for norm in norms)
