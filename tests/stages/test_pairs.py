"""A saved pair, opened part by part."""

from pathlib import Path
from typing import Any

import pytest
import torch

import davae
from davae.stages.pairs import Pair, widened
from tiny_pair import build_tiny_pair


def test_widening_for_a_run_needs_no_second_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair, loaded = Pair(build_tiny_pair(tmp_path / "pair")), []
    load = pair.load_transformer

    def remember() -> Any:
        loaded.append(load())
        return loaded[0]

    monkeypatch.setattr(pair, "load_transformer", remember)
    autoencoder = davae.AutoencoderDA.from_base(pair.load().vae, scale=2)
    transformer, report = widened(pair, autoencoder, image_size=32)
    (source,) = loaded
    own, given = transformer.state_dict(), source.state_dict()
    assert len(report.widened) == 3
    assert all(own[name].data_ptr() == given[name].data_ptr() for name in report.copied)
    want = davae.widen(load(), autoencoder.layout.detail_channels).state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in want.items())
