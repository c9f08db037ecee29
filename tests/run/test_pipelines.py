"""Pipelines that a run draws with, and what they are made of."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

import davae
from davae.backbones.pair import Pair
from davae.core.layout import LatentLayout
from davae.models.adapter import adapt
from davae.recipe import FinetuneConfig
from davae.run import build
from tiny_pair import build_tiny_pair


def test_widening_for_a_run_needs_no_second_copy(tmp_path: Path) -> None:
    pair = Pair(build_tiny_pair(tmp_path / "pair"))
    autoencoder = davae.AutoencoderDA.from_base(pair.load().vae, scale=2)
    source = pair.load_transformer()
    transformer, report = build.widened(source, adapt(autoencoder).geometry, 32, consume=True)
    widened, given = transformer.state_dict(), source.state_dict()
    assert len(report.widened) == 3
    assert all(widened[name].data_ptr() == given[name].data_ptr() for name in report.copied)
    want = davae.widen(pair.load_transformer(), autoencoder.layout.detail_channels).state_dict()
    assert all(torch.equal(widened[name], tensor) for name, tensor in want.items())


@pytest.mark.parametrize(
    ("scheduler", "name"),
    [
        (FlowMatchEulerDiscreteScheduler(shift=3.0), "shift"),
        (DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"), "flow_shift"),
    ],
)
def test_a_round_shifts_the_pairs_scheduler_and_lets_the_detail_lag(scheduler: Any, name: str) -> None:
    def drawn_with(**settings: Any) -> Any:
        config = FinetuneConfig(steps=1, batch_size=1, **settings)
        pair = SimpleNamespace(load_scheduler=lambda: scheduler)
        current: Any = SimpleNamespace(run=SimpleNamespace(pair=pair), config=config)
        return build.scheduler(current, LatentLayout(4, 6))

    assert drawn_with() is scheduler
    shifted = drawn_with(scheduler_shift=4.0)
    assert type(shifted) is type(scheduler)
    assert shifted.config[name] == 4.0
    lagging = drawn_with(scheduler_shift=4.0, detail_lag=0.3)
    assert type(lagging) is davae.DetailLagScheduler
    names = ("shift", "detail_lag", "base_channels", "detail_channels")
    assert [lagging.config[name] for name in names] == [4.0, 0.3, 4, 6]
