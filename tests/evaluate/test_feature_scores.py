"""From images and a reference to measurements: what is refused before computing, and what a number says."""

from pathlib import Path

import numpy as np
import pytest

from davae.data.image_list import ArrayImages
from davae.evaluate.feature_scores import INTERVAL, NOTE, score_features
from davae.evaluate.metrics import FEATURES
from davae.evaluate.results import Measurement
from davae.evaluate.statistics import Reference, open_reference, write_statistics
from davae.evaluate.stream import Extraction, extract
from tiny_space import arrays, tiny_space

DRAWN, REAL = ArrayImages(arrays(40, seed=1), "drawn"), ArrayImages(arrays(30, seed=2), "real")
INCEPTION = [metric for metric in FEATURES.values() if metric.space == "inception"]


def scores(tmp_path: Path, *names: str, images=DRAWN, reference=None, batch_size: int = 8) -> list[Measurement]:
    metrics = [FEATURES[name] for name in names] or INCEPTION
    reference = reference or Reference("real", REAL)
    extraction = Extraction(batch_size, folder=tmp_path)
    return score_features(images, reference, metrics, tiny_space, extraction, "drawn")


def test_a_number_says_everything_that_it_depends_on(tmp_path: Path) -> None:
    [fid] = scores(tmp_path, "fid")
    assert (fid.row, fid.column, fid.better) == ("drawn", "FID-40", "lower")
    for key in ("metric", "extractor", "weights", "preprocessing", "precision", "batch_size", "seed", "hardware"):
        assert fid.protocol[key] not in ("", None), key
    assert fid.protocol["images"] == {"path": "drawn", "count": 40, "size": "8 x 8 px", "left_out": 0}
    assert fid.protocol["reference"]["count"] == 30
    assert "FID-40 is biased upwards" in fid.protocol[NOTE]


def test_every_metric_of_a_network_is_measured_in_one_pass(tmp_path: Path) -> None:
    found = scores(tmp_path)
    columns = [item.column for item in found]
    assert columns == [
        *("FID-40", "sFID-40", "IS", "IS, shuffled", "KID", "KID, biased", "Precision", "Recall", "MIND"),
    ]
    assert [item.value for item in scores(tmp_path / "other", batch_size=3)] == pytest.approx(
        [item.value for item in found], rel=1e-6
    )


def test_a_set_against_itself_is_at_no_distance(tmp_path: Path) -> None:
    same = scores(tmp_path, "fid", "mind", "kid-biased", "precision-recall", reference=Reference("drawn", DRAWN))
    assert [item.value for item in same[:3]] == pytest.approx([0, 0, 0], abs=1e-6)
    assert [item.value for item in same[3:]] == [1, 1]


def test_an_interval_stands_in_the_protocol(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("davae.evaluate.distances.kid.SUBSET_SIZE", 10)
    [kid] = scores(tmp_path, "kid")
    low, high = kid.protocol[INTERVAL]
    assert low < kid.value < high


def test_a_metric_without_reference_needs_none(tmp_path: Path) -> None:
    [score] = score_features(DRAWN, None, [FEATURES["is"]], tiny_space, Extraction(folder=tmp_path), "drawn")
    assert score.value >= 1 and "reference" not in score.protocol


def test_statistics_stand_for_their_images(tmp_path: Path) -> None:
    from davae.evaluate.distances.frechet import moments_of

    found = extract(REAL, tiny_space(), ["pool"], Extraction(folder=tmp_path))["pool"]
    place = ("inception", "pool")
    write_statistics(
        tmp_path / "r.npz", 30, {"inception": tiny_space()}, {place: moments_of(found)}, {place: found}, {}
    )
    names = ("fid", "kid", "precision-recall", "mind")
    by_file = scores(tmp_path, *names, reference=open_reference(tmp_path / "r.npz"))
    assert [item.value for item in by_file] == pytest.approx([m.value for m in scores(tmp_path, *names)], rel=1e-9)
    assert by_file[0].protocol["reference"]["kind"] == "davae statistics"


@pytest.mark.parametrize(
    ("names", "images", "reference", "sentence"),
    [
        (("fid",), 1, 30, "FID needs at least 2 images; got 1 in few"),
        (("precision-recall",), 40, 3, "needs at least 4 images of the reference; got 3 in few"),
        (("is-shuffled",), 9, 30, "needs at least 10 images; got 9"),
        (("fid", "kid"), 40, None, "FID compares images with others; got no reference"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_computed(
    tmp_path: Path, names, images, reference, sentence: str
) -> None:
    def never(name: str):
        raise AssertionError("a network was opened")

    other = None if reference is None else Reference("few", ArrayImages(arrays(reference, seed=2), "few"))
    with pytest.raises(ValueError, match=sentence):
        score_features(
            ArrayImages(arrays(images, seed=1), "few"),
            other,
            [FEATURES[name] for name in names],
            never,
            Extraction(folder=tmp_path),
            "drawn",
        )


def test_moments_alone_are_refused_where_every_image_counts(tmp_path: Path) -> None:
    np.savez(tmp_path / "r.npz", mu=np.zeros(16), sigma=np.eye(16))
    with pytest.raises(
        ValueError, match=r"KID needs every image's features .* 'davae statistics FOLDER --metrics kid'"
    ):
        scores(tmp_path, "kid", reference=open_reference(tmp_path / "r.npz"))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"mu": np.zeros(9), "sigma": np.eye(9)}, "got 9 numbers a vector, here they are 16"),
        ({"mu": np.full(16, np.nan), "sigma": np.eye(16)}, "not finite"),
    ],
)
def test_statistics_that_do_not_fit_are_refused_before_anything_is_computed(
    tmp_path: Path, content, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "r.npz", **content)

    def never(*_: object) -> None:
        raise AssertionError("features were computed")

    monkeypatch.setattr("davae.evaluate.feature_scores.extract", never)
    monkeypatch.setattr("davae.evaluate.statistics.StatisticsFile.require", lambda *_: None)
    with pytest.raises(ValueError, match=sentence):
        scores(tmp_path, "fid", reference=open_reference(tmp_path / "r.npz"))


def test_images_of_several_sizes_are_said_to_be_resized_each(tmp_path: Path) -> None:
    mixed = ArrayImages(arrays(40, seed=1), "mixed")
    mixed.sizes = [(8, 8)] * 39 + [(8, 16)]
    [fid] = scores(tmp_path, "fid", images=mixed)
    assert "2 sizes" in fid.protocol["images"]["size"]
