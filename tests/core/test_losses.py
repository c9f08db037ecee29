"""The losses against the reference's numbers."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conftest import assert_close
from davae.core import losses
from davae.core.layout import LatentLayout
from davae.models.autoencoder import LOGVAR_RANGE


def test_hinge_is_the_references(golden) -> None:
    tensors = golden("hinge")
    real, fake = tensors["in.logits_real"], tensors["in.logits_fake"]
    assert_close(losses.hinge_discriminator(real, fake)[None], tensors["out.d_loss"], 1e-5)
    assert_close(losses.hinge_generator(fake)[None], tensors["out.g_loss"], 1e-5)


def test_kl_has_the_two_conventions_of_the_reference(golden) -> None:
    tensors = golden("kl_ldm")
    mean, logvar = tensors["in.moments"].chunk(2, dim=1)
    assert_close(losses.kl_divergence(mean, logvar)[None], tensors["out.kl_mean_no_half"], 1e-5)
    assert_close(losses.kl_divergence_sum(mean, logvar)[None], tensors["out.kl_sum_batch_mean"], 1e-5)
    extreme = tensors["in.extreme_moments"][:, 4:].clamp(*LOGVAR_RANGE)
    assert torch.equal(extreme, tensors["out.extreme_logvar"])


def test_kl_of_a_sample_is_the_text_to_image_branchs(golden) -> None:
    tensors = golden("kl_diffusers")
    mean, logvar = tensors["in.moments"].chunk(2, dim=1)
    assert_close(mean, tensors["out.mean"], 1e-6)
    assert_close(logvar.clamp(*LOGVAR_RANGE), tensors["out.logvar"], 1e-6)
    each = [losses.kl_divergence_sum(mean[[row]], logvar[[row]]) for row in range(len(mean))]
    assert_close(torch.stack(each), tensors["out.kl_per_sample"], 1e-5)
    assert_close(losses.kl_divergence_sum(mean, logvar)[None], tensors["out.kl_batch_mean"], 1e-5)


@pytest.mark.parametrize("case", ["l1_only_at_start", "l1_only_before_start", "with_perceptual_at_start"])
def test_generator_step_is_the_references(golden, case: str) -> None:
    tensors = golden("gan_step_davae")
    want = {key.removeprefix(f"out.{case}."): value for key, value in tensors.items() if f"out.{case}." in key}
    layout = LatentLayout(4, 12)
    encoder, last = tensors["weights.enc.weight"].requires_grad_(), tensors["weights.last.weight"].requires_grad_()
    image = tensors["in.x"]

    def discriminator(images: Tensor) -> Tensor:
        return F.conv2d(images, tensors["weights.disc.weight"], tensors["weights.disc.bias"])

    detail = F.conv2d(tensors["in.f"], encoder, tensors["weights.enc.bias"], padding=1)
    recon = F.conv2d(layout.join(tensors["in.z_base"], detail), last, tensors["weights.last.bias"], padding=1)
    nll = (image - recon).abs().mean()
    if case == "with_perceptual_at_start":
        nll = nll + (image - recon).square().mean()
    generator = losses.hinge_generator(discriminator(recon))
    align = losses.alignment(layout, detail, tensors["in.z_base"])
    adversarial_weight = 0.1 * _ratio(nll, generator, last, 1e4)
    align_weight = 0.5 * _ratio(nll, align, encoder, 1e8)
    assert_close(nll[None], want["nll"], 1e-5)
    assert_close(adversarial_weight[None], want["d_weight"], 1e-4)
    assert_close(align_weight[None], want["align_weight"], 1e-4)
    assert not adversarial_weight.requires_grad
    assert not align_weight.requires_grad

    has_started = 0.0 if case == "l1_only_before_start" else 1.0
    mean, logvar = tensors["in.posterior_moments"].chunk(2, dim=1)
    kl = losses.kl_divergence(mean, logvar)
    total = nll + 1e-6 * kl + adversarial_weight * has_started * generator + align_weight * align
    total.backward()
    assert_close(kl[None], want["kl"], 1e-5)
    assert_close(total[None], want["total"], 1e-4)
    assert_close(encoder.grad, want["grad_enc_weight"], 1e-4)
    assert_close(last.grad, want["grad_last_weight"], 1e-4)
    judged = losses.hinge_discriminator(discriminator(image), discriminator(recon))
    assert_close(has_started * judged[None], want["d_loss"], 1e-5)


def _ratio(reference: Tensor, term: Tensor, weight: Tensor, maximum: float) -> Tensor:
    numerator = torch.autograd.grad(reference, weight, retain_graph=True)
    denominator = torch.autograd.grad(term, weight, retain_graph=True)
    return losses.gradient_ratio(numerator, denominator, maximum=maximum)


def test_lecam_by_hand() -> None:
    real, fake = torch.tensor([[2.0, -1.0]]), torch.tensor([[-2.0, 0.25], [1.0, 0.5]])
    # real + 0.5 is 2.5 and -0.5; 0.75 - fake is 2.75, 0.5, -0.25 and 0.25
    want = 2.5**2 / 2 + (2.75**2 + 0.5**2 + 0.25**2) / 4
    assert losses.lecam(real, fake, torch.tensor(0.75), torch.tensor(-0.5)).item() == pytest.approx(want)
    content = torch.zeros(3)  # an answer that is on its anchor or beyond is left alone
    assert losses.lecam(content - 1, content + 1, torch.tensor(1.0), torch.tensor(-1.0)).item() == 0


def test_gradient_ratio_is_clamped_and_finite() -> None:
    ones, zeros = [torch.ones(4)], [torch.zeros(4)]
    assert losses.gradient_ratio(ones, zeros).item() == 1e4  # 2 / 1e-4 = 2e4, clamped
    assert losses.gradient_ratio(ones, zeros, maximum=1e8).item() == pytest.approx(2e4)
    assert losses.gradient_ratio(zeros, ones).item() == 0
    several = [torch.full((1,), 3.0), torch.full((1,), 4.0)]  # one norm over all tensors: 5
    assert losses.gradient_ratio(several, [torch.ones(1)], eps=0).item() == pytest.approx(5)


def test_half_precision_gradients_do_not_overflow() -> None:
    large = [torch.full((4096,), 60_000.0, dtype=torch.float16)]
    assert losses.gradient_ratio(large, large, eps=0).item() == pytest.approx(1)
