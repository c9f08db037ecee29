"""The VF loss against the reference's numbers, alone and in a whole generator step."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conftest import assert_close
from davae.core import losses
from davae.core.vision_loss import marginal_cosine, marginal_distance, vision_foundation

MARGINS = {"m0": (0.0, 0.0), "m": (0.5, 0.25)}
"""Margins of cosine and distance."""


@pytest.mark.parametrize("case", MARGINS)
@pytest.mark.parametrize("variant", ["", "forward_variant."])
def test_vf_loss_is_the_references(golden, case: str, variant: str) -> None:
    tensors = golden("vf_loss")
    if variant:
        projected, features = tensors["in.z"], tensors["out.forward_variant.features_proj"]
    else:
        projected, features = tensors["out.z_proj"].requires_grad_(), tensors["in.features"]
    cosine, distance = MARGINS[case]
    loss = vision_foundation(projected, features, cosine, distance)
    assert_close(marginal_cosine(projected, features, cosine)[None], tensors[f"out.{variant}{case}.mcos"], 1e-5)
    assert_close(marginal_distance(projected, features, distance)[None], tensors[f"out.{variant}{case}.mdms"], 1e-5)
    assert_close(loss[None], tensors[f"out.{variant}{case}.vf"], 1e-5)
    if not variant:
        loss.backward()
        assert_close(projected.grad, tensors[f"out.{case}.grad_z_proj"], 1e-5)


def test_positions_may_be_flat(golden) -> None:
    tensors = golden("vf_loss")
    projected, features = tensors["out.z_proj"], tensors["in.features"]
    assert torch.equal(
        vision_foundation(projected, features, 0.5, 0.25),
        vision_foundation(projected.flatten(2), features.flatten(2), 0.5, 0.25),
    )


def test_a_latent_that_is_the_features_but_for_lengths_costs_nothing() -> None:
    features = torch.randn(2, 8, 3, 3)
    lengths = torch.rand(2, 1, 3, 3) + 0.5
    assert vision_foundation(lengths * features, features).item() == pytest.approx(0, abs=1e-5)
    assert marginal_cosine(-features, features).item() == pytest.approx(2)
    assert marginal_distance(-features, features).item() == pytest.approx(0, abs=1e-5)  # the opposite, as structured


@pytest.mark.parametrize("loss", [marginal_cosine, marginal_distance])
def test_autocast_does_not_round_the_losses(loss: Callable[..., Tensor]) -> None:
    projected, features = torch.randn(2, 64, 4, 4), torch.randn(2, 64, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = loss(projected, features)
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, loss(projected, features))
    assert loss(projected.bfloat16(), features.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("features", [(1, 8, 2, 2), (1, 4, 4, 4), (1, 8, 16)])
def test_what_does_not_fit_is_refused(features: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"got a projected latent \(1, 8, 4, 4\) and features"):
        vision_foundation(torch.zeros(1, 8, 4, 4), torch.zeros(features))


@pytest.mark.parametrize("case", ["l1_only_at_start", "l1_only_before_start", "with_perceptual_at_start"])
def test_a_generator_step_of_vavae_is_the_references(golden, case: str) -> None:
    tensors = golden("gan_step_vavae")
    want = {key.removeprefix(f"out.{case}."): value for key, value in tensors.items() if f"out.{case}." in key}
    encoder, last = tensors["weights.enc.weight"].requires_grad_(), tensors["weights.last.weight"].requires_grad_()
    image = tensors["in.x"]

    def discriminator(images: Tensor) -> Tensor:
        return F.conv2d(images, tensors["weights.disc.weight"], tensors["weights.disc.bias"])

    latent = F.conv2d(tensors["in.f"], encoder, tensors["weights.enc.bias"], padding=1)
    stack = torch.cat([tensors["in.z_base"], latent], dim=1)
    recon = F.conv2d(stack, last, tensors["weights.last.bias"], padding=1)
    distance = torch.zeros(len(image))
    if case == "with_perceptual_at_start":
        distance = (image - recon).square().flatten(1).mean(dim=1)
    nll = ((image - recon).abs() + distance[:, None, None, None]).flatten(1).sum(dim=1).mean()
    projected = F.conv2d(latent, tensors["weights.linear_proj.weight"])
    vf = vision_foundation(projected, tensors["in.features"], 0.5, 0.25)
    generator = losses.hinge_generator(discriminator(recon))
    adversarial_weight = 0.5 * _ratio(nll, generator, last, 1e4)
    vf_weight = 0.1 * _ratio(nll, vf, encoder, 1e8)
    assert_close(nll[None], want["nll"], 1e-5)
    assert_close(vf[None], want["align_loss"], 1e-5)
    assert_close(adversarial_weight[None], want["d_weight"])
    assert_close(vf_weight[None], want["align_weight"])

    has_started = 0.0 if case == "l1_only_before_start" else 1.0
    mean, logvar = tensors["in.posterior_moments"].chunk(2, dim=1)
    kl = losses.kl_divergence_sum(mean, logvar)
    total = nll + 1e-6 * kl + adversarial_weight * has_started * generator + vf_weight * vf
    total.backward()
    assert_close(kl[None], want["kl"], 1e-5)
    assert_close(total[None], want["total"])
    assert_close(encoder.grad, want["grad_enc_weight"])
    assert_close(last.grad, want["grad_last_weight"])
    judged = losses.hinge_discriminator(discriminator(image), discriminator(recon))
    assert_close(has_started * judged[None], want["d_loss"], 1e-5)


def _ratio(reference: Tensor, term: Tensor, weight: Tensor, maximum: float) -> Tensor:
    numerator = torch.autograd.grad(reference, weight, retain_graph=True)
    denominator = torch.autograd.grad(term, weight, retain_graph=True)
    return losses.gradient_ratio(numerator, denominator, maximum=maximum)
