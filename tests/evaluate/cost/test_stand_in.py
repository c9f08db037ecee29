"""Copies without values: what they share, what they leave alone, and that they compute as their originals."""

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from davae.evaluate.cost.cuda_autocast import cast_as_cuda
from davae.evaluate.cost.stand_in import StandIn

CPU, META = torch.device("cpu"), torch.device("meta")


class Holder:
    """A network, one of its weights by name, and a constant."""

    def __init__(self) -> None:
        self.network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 2, 1))
        self.last = self.network[3].weight
        self.table = torch.arange(5)
        self.network[0].weight.requires_grad_(False)


def test_what_is_held_twice_is_one_tensor() -> None:
    original = Holder()
    stand_in = StandIn(original, CPU)
    held = stand_in.copy
    assert held.last is held.network[3].weight
    assert isinstance(held.last, nn.Parameter) and isinstance(held.last, FakeTensor)
    assert not held.network[0].weight.requires_grad and held.last.requires_grad
    assert held.table.dtype == torch.int64
    assert len(stand_in.tensors) == 7  # two convolutions and a norm, with their biases, and the table
    assert original.last is original.network[3].weight
    assert not isinstance(original.last, FakeTensor)


def test_a_copy_of_a_network_on_the_meta_device_computes() -> None:
    with META:
        original = Holder()
    stand_in = StandIn(original, CPU)
    images = stand_in.inputs({"image": torch.empty(1, 3, 8, 8, device="meta"), "position": torch.arange(1)})
    assert images["position"].tolist() == [0]
    with stand_in.mode:
        stand_in.copy.network(images["image"]).sum().backward()
        assert stand_in.copy.last.grad is not None
    assert original.last.grad is None


def test_on_the_meta_device_all_is_float32() -> None:
    copied = StandIn(Holder().network.bfloat16(), META).copy
    assert {weight.dtype for weight in copied.parameters()} == {torch.float32}
    assert {weight.device.type for weight in copied.parameters()} == {"meta"}


def test_norms_keep_float32_under_autocast() -> None:
    network = Holder().network
    dtypes = []
    network[1].register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            assert network(torch.zeros(1, 3, 8, 8)).dtype == torch.bfloat16
        cast_as_cuda(network)
    assert dtypes == [torch.bfloat16, torch.float32]
