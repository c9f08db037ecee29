"""The weight average: its formula, and that it never costs a bit of the weights themselves."""

import pytest
import torch
from torch import nn

from davae.train.ema import ExponentialAverage, advice_on_average, initial_share


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
    kept = [weight.detach().clone() for weight in model.parameters()]
    with average.applied():
        assert torch.equal(model[1].weight, average.shadow["1.weight"])
        assert not torch.equal(model[1].weight, kept[2])
    assert all(map(torch.equal, model.parameters(), kept))
    with pytest.raises(KeyboardInterrupt), average.applied():
        raise KeyboardInterrupt
    assert all(map(torch.equal, model.parameters(), kept))


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


@pytest.mark.parametrize("ramp", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("steps", [0, 1, 7, 60])
def test_the_initial_share_is_what_is_left_of_the_initial_weights(decay: float, steps: int, ramp: bool) -> None:
    model = network(torch.float64)
    nn.init.ones_(model[1].weight)
    average = ExponentialAverage(model, decay, ramp)
    nn.init.zeros_(model[1].weight)  # whatever is not 0 in the end was there in the beginning
    for step in range(steps):
        average.update(step)
    left = initial_share(decay, steps, ramp)
    torch.testing.assert_close(average.shadow["1.weight"], torch.full((2, 2), left), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("decay", [0.05, 0.1, 0.5, 0.9, 0.9999])
def test_the_share_of_a_ramp_is_the_product_of_its_decays(decay: float) -> None:
    share = 1.0
    for step in range(300):
        assert initial_share(decay, step, ramp=True) == pytest.approx(share, rel=1e-9)
        share *= min(decay, (1 + step) / (10 + step))


def test_the_initial_share_by_hand() -> None:
    assert initial_share(0.999, 60) == pytest.approx(0.9417, abs=1e-4)
    assert initial_share(0.9, 2, ramp=True) == pytest.approx(1 / 10 * 2 / 11)
    assert initial_share(0.15, 3, ramp=True) == pytest.approx(1 / 10 * 0.15 * 0.15)


def test_a_short_run_is_told_what_to_set() -> None:
    assert advice_on_average(0.999, 60) == (
        "with ema_decay 0.999 the averaged weights, which are the result, are still 94% the initial ones after "
        "60 steps; set ema_ramp: true, or lower ema_decay to 0.962, which leaves 10%."
    )
    assert advice_on_average(0.999, 60, ramp=True) is None
    assert advice_on_average(0.999, 4000) is None
    assert "still 37% the initial ones after 10,000 steps" in str(advice_on_average(0.9999, 10_000))


@pytest.mark.parametrize("steps", [1, 2, 10, 60, 999, 10_000, 2_000_000, 10**8])
def test_the_decay_that_is_recommended_is_enough_and_no_lower_than_needed(steps: int) -> None:
    advice = str(advice_on_average(1 - 1e-12, steps))
    recommended = float(advice.split("lower ema_decay to ")[1].split(",", maxsplit=1)[0])
    assert 0.05 < initial_share(recommended, steps) <= 0.1
    assert advice_on_average(recommended, steps) is None


def test_a_ramp_is_recommended_where_it_helps() -> None:
    assert "ema_ramp" not in str(advice_on_average(0.999, 1))  # its first decay is 0.1
    assert "ema_ramp" not in str(advice_on_average(0.999, 1, ramp=True))
    assert "ema_ramp" in str(advice_on_average(0.999, 2))
