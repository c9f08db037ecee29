"""Settings of a training: what is impossible is refused with the value and what is allowed."""

from typing import Any

import pytest

from davae.train.settings import LoopConfig, OptimConfig

WRONG = [
    ({"steps": 0}, "steps must be a whole number, at least 1; got 0"),
    ({"accumulation": 0}, "accumulation must be a whole number, at least 1; got 0"),
    ({"keep_checkpoints": 0}, "keep_checkpoints must be a whole number, at least 1; got 0"),
    ({"accumulation": 3}, "batch_size must be a multiple of accumulation 3; got 4"),
    ({"ema_decay": 1.0}, r"ema_decay must be a number in \[0, 1\); got 1.0"),
    ({"ema_decay": -0.1}, r"ema_decay must be a number in \[0, 1\); got -0.1"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoopConfig(**{"steps": 1, "batch_size": 4} | settings)


def test_a_negative_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="lr must be a finite number, at least 0; got -1"):
        OptimConfig(lr=-1.0)


def test_bookkeeping_are_settings() -> None:
    assert vars(LoopConfig(steps=1, batch_size=1)).keys() > set(LoopConfig.BOOKKEEPING)
