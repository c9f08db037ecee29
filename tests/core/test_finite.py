"""Numbers that are none are found, whatever their type, and named."""

import pytest
import torch

from davae.core.finite import bad_rows, non_finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_named(dtype: torch.dtype, value: float) -> None:
    if dtype == torch.float8_e4m3fn and value == value:
        value = float("nan")  # this type has no infinity
    bad = torch.ones(3, 4)
    bad[1, 2] = value
    tensors = {"count": torch.tensor(2**62), "empty": torch.ones(0), "one": torch.ones(()).to(dtype)}
    assert non_finite(tensors | {"large": torch.full((2,), 3e38)}) == []
    assert non_finite(tensors | {"bad": bad.to(dtype), "good": torch.ones(2)}) == ["bad"]


def test_rows_that_are_not_finite_are_counted() -> None:
    mean, logvar = torch.ones(4, 2, 2), torch.zeros(4, 3)
    assert bad_rows({"mean": mean, "logvar": logvar}) == []
    mean[3, 0, 0], logvar[1, 2] = float("nan"), float("inf")
    assert bad_rows({"mean": mean, "logvar": logvar}) == [1, 3]
