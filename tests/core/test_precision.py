"""Names of dtypes, and autocast by the name of a precision."""

from typing import get_args

import pytest
import torch

from davae.core.names import DtypeName, Precision
from davae.core.precision import DTYPES, SHORT_DTYPES, autocast, dtype_name

CPU = torch.device("cpu")


def test_every_name_is_that_of_its_dtype() -> None:
    assert set(DTYPES) == set(get_args(DtypeName))
    assert all(dtype_name(dtype) == name for name, dtype in DTYPES.items())
    assert dtype_name(torch.int64) == "int64"
    assert set(SHORT_DTYPES.values()) == set(DTYPES.values())
    assert set(get_args(Precision)) < set(SHORT_DTYPES)


@pytest.mark.parametrize(("precision", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_products_are_computed_in_the_precision(precision: Precision, expected: torch.dtype) -> None:
    values = torch.ones(2, 2)
    with autocast(CPU, precision):
        assert (values @ values).dtype == expected == SHORT_DTYPES[precision]
        assert (values + values).dtype == torch.float32
    assert (values @ values).dtype == torch.float32


def test_fp32_is_float32_inside_another_autocast() -> None:
    values = torch.ones(2, 2)
    with autocast(CPU, "bf16"), autocast(CPU, "fp32"):
        assert (values @ values).dtype == torch.float32


def test_an_unknown_precision_is_not_taken_for_fp32() -> None:
    with pytest.raises(ValueError, match="Cannot compute in 'fp16'; allowed: fp32, bf16"):
        autocast(CPU, "fp16")  # type: ignore[arg-type]
