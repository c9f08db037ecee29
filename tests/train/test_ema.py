"""The weight average: its formula, and that it never costs a bit of the weights themselves."""

import pytest
import torch
from torch import nn

from davae.train.ema import ExponentialAverage


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Two layers, the first frozen."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)).to(dtype)
    model[0].requires_grad_(False)
    return model


@torch.no_grad()
def move(model: nn.Module, amount: float) -> None:
    for weight in model.parameters():
        weight.add_(amount)


@pytest.mark.parametrize("ramp", [False, True])
def test_the_average_is_the_formula(ramp: bool) -> None:
    model = network()
    average = ExponentialAverage(model, 0.4, ramp)
    want = model[1].weight.detach().double().clone()
    for step, amount in enumerate([1.0, -3.0, 0.5, 8.0, 2.0, 1.0]):
        move(model, amount)
        average.update(step)
        decay = min(0.4, (1 + step) / (10 + step)) if ramp else 0.4
        want = decay * want + (1 - decay) * model[1].weight.detach().double()
        torch.testing.assert_close(average.shadow["1.weight"].double(), want, rtol=1e-5, atol=1e-6)


def test_the_average_starts_at_the_weights() -> None:
    model = network()
    average = ExponentialAverage(model, 0.999)
    start = model[1].weight.detach().clone()
    assert torch.equal(average.shadow["1.weight"], start)
    move(model, 1.0)
    assert torch.equal(average.shadow["1.weight"], start)  # a copy, not a view


def test_frozen_weights_are_not_followed() -> None:
    model = network()
    average = ExponentialAverage(model, 0.5)
    assert sorted(average.shadow) == ["1.bias", "1.weight"]
    move(model, 1.0)
    frozen = model[0].weight.detach().clone()
    with average.applied():
        assert torch.equal(model[0].weight, frozen)


def test_the_weights_come_back_bit_for_bit() -> None:
    model = network()
    average = ExponentialAverage(model, 0.5)
    move(model, 0.3)
    average.update(0)
    move(model, 0.1)
    own = [weight.detach().clone() for weight in model.parameters()]
    with average.applied():
        assert torch.equal(model[1].weight, average.shadow["1.weight"])
        assert not torch.equal(model[1].weight, own[2])
    assert all(map(torch.equal, model.parameters(), own))
    with pytest.raises(KeyboardInterrupt), average.applied():
        raise KeyboardInterrupt
    assert all(map(torch.equal, model.parameters(), own))


def test_half_precision_weights_have_a_full_precision_average() -> None:
    model = network(torch.bfloat16)
    average = ExponentialAverage(model, 0.999)
    start = average.shadow["1.weight"].clone()
    assert start.dtype == torch.float32
    move(model, 0.5)
    average.update(0)  # moves by 5e-4: less than bfloat16 can hold
    torch.testing.assert_close(average.shadow["1.weight"] - start, torch.full((2, 2), 5e-4), rtol=0.1, atol=0)
    with average.applied():
        assert model[1].weight.dtype == torch.bfloat16


def test_a_stored_average_goes_on_where_it_was() -> None:
    first, second = network(), network()
    average, resumed = ExponentialAverage(first, 0.9), ExponentialAverage(second, 0.9)
    move(first, 1.0)
    average.update(0)
    stored = {name: tensor.clone() for name, tensor in average.shadow.items()}
    second.load_state_dict(first.state_dict())
    resumed.load(stored)
    move(first, 1.0)
    move(second, 1.0)
    average.update(1)
    resumed.update(1)
    assert torch.equal(resumed.shadow["1.weight"], average.shadow["1.weight"])
    assert not torch.equal(stored["1.weight"], resumed.shadow["1.weight"])  # what was stored stays as it was


def test_a_strangers_average_is_refused() -> None:
    with pytest.raises(ValueError, match="other weights: .*2.weight"):
        ExponentialAverage(network(), 0.9).load({"2.weight": torch.zeros(2, 2)})


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0])
def test_the_decay_has_a_range(decay: float) -> None:
    with pytest.raises(ValueError, match=rf"\[0, 1\); got {decay}"):
        ExponentialAverage(network(), decay)
