"""The three resizes against the evaluators that they are named after."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from davae.evaluate.spaces.resize import pil_bicubic, preprocess, tensorflow_bilinear, torch_bilinear

# Rows and columns at which the golden results of 299 px are kept.
SAMPLE = [*range(0, 287, 13), 297, 298]
RULES = {
    "tf1": (tensorflow_bilinear, 4e-3),
    "pytorch_fid": (lambda *given: torch_bilinear(*given) / 255, 3e-5),
    "clean": (pil_bicubic, 1e-3),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", ["1x9", "7x5", "37x53", "150x411", "299x299"])
def test_resizes_as_the_reference(golden, case: str, rule: str) -> None:
    tensors = golden(f"eval/resize_{case}")
    resize, tolerance = RULES[rule]
    found = 0
    for key, want in tensors.items():
        if not key.startswith(f"out.{rule}."):
            continue
        height, width = map(int, key.rpartition(".")[2].split("x"))
        got = resize(tensors["in.image"].numpy(), height, width)
        if height == 299:
            got = got[:, SAMPLE][:, :, SAMPLE]
        assert got.dtype == np.float32
        assert np.abs(got - want.numpy()).max() <= tolerance, key
        found += 1
    assert found >= 1


def test_a_ramp_shows_where_each_of_them_looks() -> None:
    ramp = np.arange(4, dtype=np.uint8)[None, :, None].repeat(3, axis=2)
    assert tensorflow_bilinear(ramp, 1, 3)[0, 0] == pytest.approx([0, 4 / 3, 8 / 3])
    assert torch_bilinear(ramp, 1, 3)[0, 0] == pytest.approx([1 / 6, 1.5, 17 / 6])


def test_ours_on_half_pixel_centres_is_torchs() -> None:
    image = np.random.default_rng(0).integers(0, 256, (61, 340, 3), dtype=np.uint8)
    theirs = F.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None].float(), size=(299, 299), mode="bilinear", align_corners=False
    )
    assert np.abs(torch_bilinear(image, 299, 299) - theirs[0].numpy()).max() < 8e-3


def test_ranges_of_the_protocols() -> None:
    image = np.array([[[0, 128, 255]]], dtype=np.uint8)
    assert preprocess(image, "adm", 1).ravel() == pytest.approx([-1, 0, 127 / 128])
    assert preprocess(image, "clean", 1).ravel() == pytest.approx([-1, 0, 127 / 128])
    assert preprocess(image, "pytorch-fid", 1).ravel() == pytest.approx([-1, 256 / 255 - 1, 1], abs=1e-6)


def test_an_unknown_protocol_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="allowed are adm, pytorch-fid, clean"):
        preprocess(np.zeros((2, 2, 3), np.uint8), "tf2", 4)  # type: ignore[arg-type]
