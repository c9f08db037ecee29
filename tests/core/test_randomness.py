"""Draws are functions of their key: a row does not know its batch."""

import subprocess
import sys

import pytest
import torch

from davae.core.randomness import generator, normal, permutation, uniform


def test_a_row_does_not_depend_on_the_batch() -> None:
    samples = [3, "photo-17", 8, 21]
    together = normal(0, "noise", samples, (2, 3))
    for row, sample in enumerate(samples):
        assert torch.equal(normal(0, "noise", [sample], (2, 3))[0], together[row])
    assert torch.equal(normal(0, "noise", samples[::-1], (2, 3)), together.flip(0))
    assert torch.equal(uniform(0, "drop", samples)[2:], uniform(0, "drop", samples[2:]))


def test_global_state_neither_matters_nor_changes() -> None:
    torch.manual_seed(1)
    first = normal(0, "noise", [1], (4,))
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(normal(0, "noise", [1], (4,)), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("other", [(1, "noise", 5), (0, "flip", 5), (0, "noise", 6)])
def test_every_part_of_the_key_matters(other: tuple[int, str, int]) -> None:
    seed, purpose, sample = other
    assert not torch.equal(normal(seed, purpose, [sample], (4,)), normal(0, "noise", [5], (4,)))


def test_key_parts_do_not_run_together() -> None:
    draws = {torch.randint(2**62, (), generator=generator(*key)).item() for key in [(1, 23), (12, 3), (123,)]}
    assert len(draws) == 3


def test_distributions() -> None:
    samples = range(2000)
    normals, uniforms = normal(0, "a", samples, (4,)), uniform(0, "b", samples)
    assert normals.mean().abs() < 0.05
    assert normals.std().item() == pytest.approx(1, abs=0.05)
    assert uniforms.min() >= 0
    assert uniforms.max() < 1
    assert uniforms.mean().item() == pytest.approx(0.5, abs=0.03)


def test_an_epoch_visits_everything_once_in_its_own_order() -> None:
    first = permutation(0, "order", 0, 50)
    assert sorted(first.tolist()) == list(range(50))
    assert torch.equal(first, permutation(0, "order", 0, 50))
    assert not torch.equal(first, permutation(0, "order", 1, 50))


def test_draws_are_the_same_in_another_process() -> None:
    code = "from davae.core.randomness import normal; print(normal(7, 'noise', ['x'], (3,)).tolist())"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == str(normal(7, "noise", ["x"], (3,)).tolist())
