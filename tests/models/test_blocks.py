"""The detail blocks against the reference's two branches."""

import pytest
import torch

from conftest import assert_close
from davae.models.blocks import DetailDownBlock, DetailUpBlock

DOWN = {
    "da_divisible": (16, 8, 2, "unshuffle"),
    "da_nondivisible": (16, 24, 2, "unshuffle"),
    "da_strided": (12, 6, 2, "strided"),
    "dc_f2": (16, 8, 2, "unshuffle"),
    "dc_f4": (8, 32, 4, "unshuffle"),
    "dc_f4_nondivisible": (8, 48, 4, "unshuffle"),
}
UP = {"da": (12, 15, 2), "dc_f2": (8, 16, 2), "dc_f4": (8, 6, 4)}


def weights_of(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.removeprefix("weights."): value for key, value in tensors.items() if "weights." in key}


@pytest.mark.parametrize("case", DOWN)
def test_down_block_is_the_references(golden, case: str) -> None:
    tensors = golden(f"down_block_{case}")
    block = DetailDownBlock(*DOWN[case])
    block.load_state_dict(weights_of(tensors), strict=True)
    assert_close(block(tensors["in.x"]), tensors["out.y"])
    torch.nn.init.zeros_(block.conv.weight)
    torch.nn.init.zeros_(block.conv.bias)
    assert_close(block(tensors["in.x"]), tensors["out.shortcut"])


@pytest.mark.parametrize("case", UP)
def test_up_block_is_the_references(golden, case: str) -> None:
    tensors = golden(f"up_block_{case}")
    block = DetailUpBlock(*UP[case])
    block.load_state_dict(weights_of(tensors), strict=True)
    assert_close(block(tensors["in.x"]), tensors["out.y"])
    torch.nn.init.zeros_(block.conv.weight)
    torch.nn.init.zeros_(block.conv.bias)
    assert_close(block(tensors["in.x"]), tensors["out.shortcut"])


def test_learned_shortcuts_start_at_zero() -> None:
    down, up = DetailDownBlock(16, 24, 2), DetailUpBlock(12, 16, 2)  # 64 / 24 and 64 / 12 are no whole numbers
    for projection in (down.shortcut_proj, up.shortcut_proj):
        assert projection is not None
        assert projection.bias is None
        assert not projection.weight.any()
    assert DetailDownBlock(16, 8, 2).shortcut_proj is None
    assert DetailUpBlock(8, 16, 2).shortcut_proj is None


@pytest.mark.parametrize("factor", [2, 4])
def test_up_block_without_parameter_free_shortcut_has_the_right_shape(factor: int) -> None:
    assert DetailUpBlock(7, 5, factor)(torch.randn(2, 7, 3, 4)).shape == (2, 5, 3 * factor, 4 * factor)


def test_impossible_unshuffle_is_explained() -> None:
    with pytest.raises(ValueError, match="Choose detail_channels divisible by 8"):
        DetailDownBlock(16, 12, 4)
