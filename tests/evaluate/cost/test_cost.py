"""What a report prints of a cost."""

import pytest

from davae.evaluate.cost.cost import Cost, gib, hours, readable
from davae.evaluate.cost.flops import Flops
from davae.evaluate.cost.memory import Memory
from davae.evaluate.gpus import named_gpu


def test_hours() -> None:
    assert hours(989e12 * 3600, named_gpu("h100"), "bf16", utilisation=0.5) == pytest.approx(2)
    assert hours(989e12 * 3600, named_gpu("h100"), "bf16", utilisation=0.5, devices=4) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="no bfloat16"):
        hours(1.0, named_gpu("T4"), "bf16")


def test_the_worst_moment_has_either_activations_or_the_update() -> None:
    weights = {"float32": 100, "bfloat16": 0}
    memory = Memory(weights=weights, gradients=10, optimizer=20, average=0, activations=200, update=50)
    assert memory.parts == {"weights float32": 100, "gradients": 10, "optimizer": 20, "activations": 200}
    assert (memory.total, memory.largest) == (330, "activations")
    small = Memory(weights=weights, activations=5, update=50)
    assert small.parts == {"weights float32": 100, "update": 50}
    assert (small.total, small.largest) == (150, "weights float32")


def test_a_line_for_people() -> None:
    memory = Memory({"float32": 2**30}, gradients=2**29, activations=2**31)
    training = Cost("tokenizer", memory, 2, Flops(10**12, 2 * 10**12), 1000, "bf16")
    assert str(training) == (
        "tokenizer: about 3.5 GiB for 2 images at once, most of it activations (weights float32 1.0 GiB, gradients "
        "0.5 GiB, activations 2.0 GiB); 1 TFLOP forward and 2 TFLOP backward an image, 3 PFLOP for 1,000 images"
    )
    assert training.hours(named_gpu("H100")) == hours(3e15, named_gpu("H100"), "bf16")
    assert "1 TFLOP an image" in str(Cost("cache", memory, 2, Flops(10**12), 1000, "bf16"))


def test_numbers_for_people() -> None:
    assert readable(1.234e12, "FLOP") == "1.23 TFLOP"
    assert gib(3 * 2**29) == "1.5 GiB"
    assert gib(2**20) == "1.0 MiB"
