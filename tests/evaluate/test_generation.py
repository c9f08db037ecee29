"""Sets of generated images, and the control whose detail is noise."""

import pytest
import torch

from davae.core.layout import LatentLayout
from davae.data.solids import SolidsSource
from davae.evaluate.generation import (
    CONTROL,
    REAL,
    UPGRADED,
    JudgedSet,
    measure_features,
    measure_generation,
    with_random_detail,
)
from davae.evaluate.metrics import feature_metrics
from davae.evaluate.spectrum_slope import SPECTRUM_SLOPE
from davae.evaluate.stream import Extraction
from davae.evaluate.swd import SWD
from tiny_space import tiny_space

LAYOUT = LatentLayout(2, 4)


def test_random_detail_is_a_function_of_seed_and_image_alone() -> None:
    latents, ids = torch.randn(5, 6, 3, 2), [7, 8, 9, 10, 11]
    whole = with_random_detail(LAYOUT, latents, ids, seed=1)
    parts = [
        with_random_detail(LAYOUT, latents[rows], ids[rows], seed=1)
        for rows in (slice(0, 2), slice(2, 3), slice(3, 5))
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(with_random_detail(LAYOUT, latents.flip(0), ids[::-1], seed=1).flip(0), whole)
    others = with_random_detail(LAYOUT, latents, ids, seed=2)
    assert not torch.equal(others, whole)


def test_random_detail_leaves_the_base_and_is_normal() -> None:
    latents = torch.randn(64, 6, 8, 8) * 5 + 3
    drawn = with_random_detail(LAYOUT, latents, range(64), seed=0)
    base, detail = LAYOUT.split(drawn)
    assert torch.equal(base, LAYOUT.split(latents)[0])
    assert detail.mean().item() == pytest.approx(0, abs=0.05)
    assert detail.std().item() == pytest.approx(1, abs=0.02)
    assert len({row.flatten()[0].item() for row in detail}) == 64  # no two images have the same
    assert with_random_detail(LAYOUT, latents.bfloat16(), range(64), seed=0).dtype == torch.bfloat16


def test_a_set_is_at_no_distance_from_itself_and_every_number_has_its_protocol() -> None:
    source = SolidsSource(6, 0)
    images, others = source.images(range(3), 32), source.images(range(3, 6), 32)
    sets = {UPGRADED: images, CONTROL: images.roll(3, dims=-1)}
    measurements = measure_generation(sets, others, {"steps": 4})
    assert {item.row for item in measurements} == sets.keys()
    assert all(item.protocol["drawn"] == {"steps": 4} for item in measurements)
    distances = [item for item in measurements if item.group == SWD.group]
    assert all(item.value > 0 for item in distances)
    assert [item.column for item in distances if item.row == UPGRADED] == ["32 px level", "16 px level"]
    slopes = {item.column: item.better for item in measurements if item.group == SPECTRUM_SLOPE.group}
    assert slopes == {"slope": "", "real images": "", "difference": "lower"}
    near = measure_generation({UPGRADED: images}, images.roll(1, dims=0), {})
    assert near[0].value < measurements[0].value


def test_sets_are_judged_by_features_and_say_how_they_were_drawn(tmp_path) -> None:
    source = SolidsSource(24, 0)
    images, others = source.images(range(12), 32), source.images(range(12, 24), 32)
    measurements = measure_features(
        {UPGRADED: JudgedSet(images), CONTROL: JudgedSet(others), REAL: JudgedSet(images)},
        others,
        {"steps": 4},
        feature_metrics(["fid", "is"]),
        tiny_space,
        Extraction(folder=tmp_path),
    )
    assert [(item.row, item.column) for item in measurements] == [
        (row, column) for row in (UPGRADED, CONTROL, REAL) for column in ("FID-12", "IS")
    ]
    assert measurements[0].value > 0 and measurements[2].value == pytest.approx(0, abs=1e-6)
    assert all(item.protocol["drawn"] == {"steps": 4} for item in measurements if item.row != REAL)
    assert "drawn" not in measurements[-1].protocol
