"""Pipelines that a run draws with, and what they are made of."""

from pathlib import Path

import torch

import davae
from davae.backbones.pair import Pair
from davae.models.adapter import adapt
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
