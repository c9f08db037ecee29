"""Widened weights against the reference's adapted checkpoint, and the warm start's own laws."""

import pytest
import torch
import torch.nn.functional as F

from davae.core.widen import KeyReport, grow_patch, widen_inputs, widen_outputs

EMBEDDER, HEAD = "x_embedder.proj.weight", "final_layer.linear"


def test_zero_pad_is_the_references_for_every_key(golden) -> None:
    tensors = golden("zero_pad")
    base = {key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")}
    want = {key.removeprefix("out.adapted."): value for key, value in tensors.items() if "out.adapted." in key}
    assert base.keys() == want.keys()
    for name, weight in base.items():
        got = weight
        if name == EMBEDDER:
            got = widen_inputs(weight, 24)
        elif name.startswith(HEAD):
            got = widen_outputs(weight, 24)
        assert torch.equal(got, want[name]), name


def test_repeat_is_the_references(golden) -> None:
    tensors = golden("zero_pad")
    got = widen_inputs(tensors[f"weights.{EMBEDDER}"], 24, init="repeat")
    assert torch.equal(got, tensors[f"out.repeat_average.{EMBEDDER}"])
    for name in (f"{HEAD}.weight", f"{HEAD}.bias"):
        got = widen_outputs(tensors[f"weights.{name}"], 24, init="repeat")
        assert torch.equal(got, tensors[f"out.repeat_average.{name}"])


def test_zero_columns_are_deaf_to_the_detail() -> None:
    weight, base = torch.randn(8, 3, 2, 2), torch.randn(2, 3, 6, 6)
    wide = widen_inputs(weight, 7)
    loud = torch.cat([base, 1e4 * torch.randn(2, 4, 6, 6)], dim=1)
    assert torch.allclose(F.conv2d(loud, wide, stride=2), F.conv2d(base, weight, stride=2), atol=1e-5)


def test_random_columns_are_new_and_the_base_ones_untouched() -> None:
    weight = torch.randn(6, 4, 2, 2)
    wide = widen_inputs(weight, 9, init="random", seed=3)
    assert torch.equal(wide[:, :4], weight)
    assert (wide[:, 4:] != 0).all()
    assert wide[:, 4:].abs().max() <= (3 / (5 * 4)) ** 0.5  # over the fan-in of the new columns
    assert torch.equal(wide, widen_inputs(weight, 9, init="random", seed=3))
    assert not torch.equal(wide, widen_inputs(weight, 9, init="random", seed=4))


def test_random_rows_are_new_and_their_bias_is_zero() -> None:
    weight, bias = torch.randn(2 * 3, 16), torch.randn(2 * 3)
    wide = widen_outputs(weight, 5, init="random", groups=2, seed=1).unflatten(0, (2, 5))
    assert torch.equal(wide[:, :3], weight.unflatten(0, (2, 3)))
    assert (wide[:, 3:] != 0).all()
    assert wide[:, 3:].abs().max() <= 16**-0.5
    assert torch.equal(wide.flatten(0, 1), widen_outputs(weight, 5, init="random", groups=2, seed=1))
    assert not widen_outputs(bias, 5, init="random", groups=2).unflatten(0, (2, 5))[:, 3:].any()


def test_rows_grow_inside_each_group() -> None:
    rows = torch.arange(1.0, 7.0)  # two groups of three channels
    assert widen_outputs(rows, 5, groups=2).tolist() == [1, 2, 3, 0, 0, 4, 5, 6, 0, 0]
    assert widen_outputs(rows, 5, groups=2, init="repeat").tolist() == [1, 2, 3, 1, 2, 4, 5, 6, 4, 5]


@pytest.mark.parametrize("init", ["zero", "random", "repeat"])
def test_no_new_channels_change_nothing(init) -> None:
    weight = torch.randn(4, 3, 1, 1)
    assert torch.equal(widen_inputs(weight, 3, init), weight)
    assert torch.equal(widen_outputs(weight, 4, init), weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("init", ["zero", "random", "repeat"])
def test_dtype_is_kept(dtype: torch.dtype, init) -> None:
    weight = torch.randn(4, 3).to(dtype)
    assert widen_inputs(weight, 6, init).dtype == dtype
    assert widen_outputs(weight, 6, init).dtype == dtype


@pytest.mark.parametrize(("size", "padding"), [(2, (1, 0)), (3, (1, 1))])
def test_grown_patch_sees_the_same_pixel(size: int, padding: tuple[int, int]) -> None:
    weight, image = torch.randn(5, 3, 1, 1), torch.randn(1, 3, 4, 4)
    wide = grow_patch(weight, size)
    assert wide.shape == (5, 3, size, size)
    before, after = padding
    same = F.conv2d(F.pad(image, (before, after, before, after)), wide)
    assert torch.allclose(same, F.conv2d(image, weight), atol=1e-6)


def test_report_counts_every_key() -> None:
    assert str(KeyReport(["a", "b"], ["c"])) == "2 copied, 1 widened (c)"


def test_impossible_widenings_are_refused() -> None:
    weight = torch.zeros(4, 3, 1, 1)
    for widen in (widen_inputs, widen_outputs):
        with pytest.raises(ValueError, match="got 'ones'. Allowed: zero, random, repeat"):
            widen(weight, 6, init="ones")
        with pytest.raises(ValueError, match="cannot remove channels; got . -> 2"):
            widen(weight, 2)
    with pytest.raises(ValueError, match="4 rows cannot be split into 3 groups"):
        widen_outputs(weight, 6, groups=3)
    with pytest.raises(ValueError, match=r"\(4, 3, 2, 2\)"):
        grow_patch(torch.zeros(4, 3, 2, 2), 4)
