"""PSNR and SSIM against a numpy computation that shares no code with them."""

import math

import numpy as np
import pytest
import torch

from davae.evaluate.similarity import psnr, ssim


def _numpy_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """One channel, every window in turn (Wang et al. 2004, Eq. 13)."""
    axis = np.arange(11) - 5
    window = np.exp(-(axis[:, None] ** 2 + axis[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for y in range(a.shape[0] - 10):
        for x in range(a.shape[1] - 10):
            p, q = a[y : y + 11, x : x + 11], b[y : y + 11, x : x + 11]
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
            cov = (window * (p - mp) * (q - mq)).sum()
            top = (2 * mp * mq + 0.01**2) * (2 * cov + 0.03**2)
            values.append(top / ((mp**2 + mq**2 + 0.01**2) * (vp + vq + 0.03**2)))
    return float(np.mean(values))


def test_psnr_matches_numpy_per_image_and_clamps() -> None:
    a, b = torch.rand(3, 3, 16, 20), torch.rand(3, 3, 16, 20) * 1.4 - 0.2
    x, y = a.double().numpy(), b.double().clamp(0, 1).numpy()
    want = [10 * math.log10(1 / np.mean((x[i] - y[i]) ** 2)) for i in range(3)]
    assert psnr(a, b).tolist() == pytest.approx(want, abs=1e-4)


def test_uint8_equals_float_and_a_known_value() -> None:
    a = torch.full((1, 3, 12, 12), 100, dtype=torch.uint8)
    b = a + 51  # 0.2 of the range
    assert psnr(a, b).item() == pytest.approx(-20 * math.log10(0.2), abs=1e-4)
    torch.testing.assert_close(psnr(a, b), psnr(a.float() / 255, b))
    assert psnr(a, a).item() == math.inf


def test_ssim_matches_numpy() -> None:
    a = torch.rand(2, 3, 15, 13)
    b = (a + 0.2 * torch.randn_like(a)).clamp(0, 1)
    x, y = a.double().numpy(), b.double().numpy()
    want = [np.mean([_numpy_ssim(x[i, c], y[i, c]) for c in range(3)]) for i in range(2)]
    assert ssim(a, b).tolist() == pytest.approx(want, abs=1e-5)
    assert ssim(a, a).tolist() == pytest.approx([1.0, 1.0], abs=1e-6)


def test_refusals_name_what_is_wrong() -> None:
    image = torch.rand(1, 3, 12, 12)
    with pytest.raises(ValueError, match="one shape"):
        psnr(image, image[:, :, :6])
    with pytest.raises(ValueError, match="int64"):
        psnr(image, torch.zeros(1, 3, 12, 12, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least 11x11"):
        ssim(image[..., :8], image[..., :8])
