"""The structured latent against the reference's grouped means, and its own laws."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import assert_close
from davae.core.layout import LatentLayout
from davae.core.losses import alignment


@pytest.mark.parametrize("ratio", [1, 3, 4])
def test_alignment_is_the_references(golden, ratio: int) -> None:
    tensors = golden("align")
    case = f"r{ratio}"
    base = tensors[f"in.{case}.z_base"].requires_grad_()
    detail = tensors[f"in.{case}.z_detail"].requires_grad_()
    layout = LatentLayout(4, 4 * ratio)

    assert_close(layout.group_mean(detail), tensors[f"out.{case}.group_mean"], 1e-5)
    loss = alignment(layout, detail, base)
    loss.backward()
    assert_close(loss[None], tensors[f"out.{case}.mse"], 1e-5)
    assert_close(detail.grad, tensors[f"out.{case}.grad_z_detail"], 1e-5)
    assert base.grad is None  # the base latent is a constant


@pytest.mark.parametrize("detail_channels", [4, 12, 10])
def test_text_to_image_branch_has_the_same_groups(golden, detail_channels: int) -> None:
    tensors = golden("align_sd3_mean")
    layout = LatentLayout(4, detail_channels)
    got = layout.group_mean(tensors[f"in.c{detail_channels}_to_4"])
    assert_close(got, tensors[f"out.c{detail_channels}_to_4"], 1e-5)


def test_numbers_of_base_and_detail_are_spread_over_their_channels() -> None:
    spread = LatentLayout(2, 3).spread(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    assert spread.tolist() == [[1, 1, 3, 3, 3], [2, 2, 4, 4, 4]]


@pytest.mark.parametrize(("detail_channels", "sizes"), [(12, [3, 3, 3, 3]), (10, [2, 3, 3, 2])])
def test_gradient_spreads_evenly_inside_each_group(detail_channels: int, sizes: list[int]) -> None:
    detail = torch.randn(1, detail_channels, 2, 2, requires_grad=True)
    LatentLayout(4, detail_channels).group_mean(detail).sum().backward()
    want = torch.tensor([1 / size for size in sizes for _ in range(size)])
    assert_close(detail.grad, want.view(1, -1, 1, 1).expand(1, -1, 2, 2), 1e-6)


@given(
    base_channels=st.integers(1, 6),
    detail_channels=st.integers(0, 8),
    batch=st.integers(1, 3),
    height=st.integers(1, 4),
    width=st.integers(1, 4),
)
def test_split_undoes_join(base_channels: int, detail_channels: int, batch: int, height: int, width: int) -> None:
    layout = LatentLayout(base_channels, detail_channels)
    base = torch.randn(batch, base_channels, height, width)
    detail = torch.randn(batch, detail_channels, height, width)
    latent = layout.join(base, detail)
    assert latent.shape == (batch, layout.channels, height, width)
    assert torch.equal(latent[:, :base_channels], base)  # base first
    again = layout.split(latent)
    assert torch.equal(again[0], base)
    assert torch.equal(again[1], detail)
    assert again[0].data_ptr() == latent.data_ptr()  # a view


def test_channel_weights_stand_in_channel_order() -> None:
    assert LatentLayout(2, 3).channel_weights(0.25, 2.0).tolist() == [2.0, 2.0, 0.25, 0.25, 0.25]
    assert LatentLayout(2, 0).channel_weights(0.25).tolist() == [1.0, 1.0]
    for weights in ((0.0, 0.0), (-0.1, 1.0), (0.5, -1.0)):
        with pytest.raises(ValueError, match="positive sum"):
            LatentLayout(2, 3).channel_weights(*weights)


def test_wrong_widths_are_explained() -> None:
    layout = LatentLayout(4, 8)
    base, detail = torch.zeros(1, 4, 2, 2), torch.zeros(1, 8, 2, 2)
    with pytest.raises(ValueError, match=r"base latent .* got shape \(1, 8, 2, 2\), expected 4 channels"):
        layout.join(detail, base)
    with pytest.raises(ValueError, match="detail latent .* expected 8 channels"):
        layout.join(base, base)
    with pytest.raises(ValueError, match=r"expected 12 channels \(4 base \+ 8 detail\)"):
        layout.split(base)
    with pytest.raises(ValueError, match="detail latent"):
        layout.group_mean(base)


def test_impossible_layouts_are_refused() -> None:
    with pytest.raises(ValueError, match="got 0 and 4"):
        LatentLayout(0, 4)
    with pytest.raises(ValueError, match="got 4 and -1"):
        LatentLayout(4, -1)
    with pytest.raises(ValueError, match="2 detail for 4 base"):
        LatentLayout(4, 2).group_mean(torch.zeros(1, 2, 1, 1))
