"""Super-resolution networks: their sums, written out once more, and their shapes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conftest import assert_close
from davae.models.upscalers.compact import SRVGGNetCompact
from davae.models.upscalers.network import UpscalingNetwork
from davae.models.upscalers.residual_dense import ResidualDenseNet
from davae.models.upscalers.rrdb import RRDBNet


def images(height: int = 8, width: int = 6) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("network", "scale"),
    [
        (RRDBNet(1, 4, 2), 4),
        (RRDBNet(1, 4, 2, doublings=1), 2),
        (RRDBNet(1, 4, 2, doublings=0), 1),
        (RRDBNet(1, 4, 2, unshuffle=2), 2),
        (RRDBNet(1, 4, 2, unshuffle=4), 1),
        (SRVGGNetCompact(2, 4, 3), 3),
        (ResidualDenseNet(2, 1, 4, 8, 2), 2),
    ],
    ids=lambda value: value.geometry if isinstance(value, UpscalingNetwork) else "",
)
@torch.no_grad()
def test_a_side_grows_by_the_scale(network: UpscalingNetwork, scale: int) -> None:
    assert network.scale == scale
    side = 4 * network.multiple
    assert network(images(side, 2 * side)).shape == (2, 3, side * scale, 2 * side * scale)


@torch.no_grad()
def test_rrdb_is_dense_blocks_in_residuals() -> None:
    network = RRDBNet(1, 4, 2)
    weights = dict(network.named_parameters())

    def conv(name: str, x: Tensor) -> Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)

    first = conv("conv_first", images())
    block = first
    for rdb in ("rdb1", "rdb2", "rdb3"):
        seen = [block]
        for index in range(1, 5):
            seen.append(F.leaky_relu(conv(f"body.0.{rdb}.conv{index}", torch.cat(seen, 1)), 0.2))
        block = block + 0.2 * conv(f"body.0.{rdb}.conv5", torch.cat(seen, 1))
    x = first + conv("conv_body", first + 0.2 * block)
    for name in ("conv_up1", "conv_up2"):
        x = F.leaky_relu(conv(name, x.repeat_interleave(2, 2).repeat_interleave(2, 3)), 0.2)
    expected = conv("conv_last", F.leaky_relu(conv("conv_hr", x), 0.2))
    assert_close(network(images()), expected)


@torch.no_grad()
def test_the_compact_network_adds_to_the_enlarged_image() -> None:
    network = SRVGGNetCompact(1, 4, 2)
    last = network.body[-1]
    assert isinstance(last, nn.Conv2d) and last.bias is not None
    last.weight.zero_()
    last.bias.copy_(torch.arange(12.0))
    added = network(images()) - images().repeat_interleave(2, 2).repeat_interleave(2, 3)
    # A pixel's channels become the pixels of its square, colour by colour.
    assert_close(added[0, :, :2, :2], torch.arange(12.0).view(3, 2, 2))


@torch.no_grad()
def test_the_dense_network_works_on_the_range_of_bytes() -> None:
    network = ResidualDenseNet(2, 1, 4, 8, 2)
    last = network.layers["SR"]
    assert isinstance(last, nn.Conv2d) and last.bias is not None
    last.weight.zero_()
    last.bias.fill_(255.0)
    assert_close(network(images()), torch.ones(2, 3, 16, 12))
    seen: list[Tensor] = []
    network.layers["F_m1"].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    network(images())
    assert_close(seen[0], 255 * images())
