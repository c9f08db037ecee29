"""Distances and scores of features against the reference evaluators, and where the answer is known."""

import numpy as np
import pytest
import torch

from davae.evaluate.distances.frechet import FID, frechet, labelled, moments_of
from davae.evaluate.distances.inception_score import adm_score, shuffled_score
from davae.evaluate.distances.kid import KID, kernel_distances, squared_mmd
from davae.evaluate.distances.mind import mind
from davae.evaluate.distances.mmd import cmmd
from davae.evaluate.distances.precision_recall import precision_recall, squared_radii
from davae.evaluate.metric import FeatureSet


def arrays(case: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {key: tensor.numpy() for key, tensor in case.items()}


@pytest.mark.parametrize(
    "case",
    [
        "float64_200x150_d16",
        "float32_300x260_d64",
        "float64_rank_deficient_40x48_d64",
        "float64_one_side_deficient_30x300_d48",
        "float64_same_set_120_d24",
    ],
)
def test_frechet_distance_is_that_of_torch_fidelity(golden, case: str) -> None:
    given = arrays(golden(f"eval/fid_{case}"))
    a, b = moments_of(given["in.x1"]), moments_of(given["in.x2"])
    traces = float(given["out.sigma1_trace"] + given["out.sigma2_trace"])
    tolerance = (1e-5 if "float32" in case else 1e-6) * traces
    assert frechet(a, b) == pytest.approx(float(given["out.fid.torch_fidelity"]), abs=tolerance)


def test_frechet_distance_of_known_gaussians() -> None:
    draws = np.random.default_rng(0).normal(size=(4000, 6))
    whitened = (draws - draws.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(draws.T))).T
    distance = frechet(moments_of(whitened), moments_of(3 + 2 * whitened))
    assert distance == pytest.approx(6 * 3**2 + 6 * (1 - 2) ** 2, rel=1e-6)


@pytest.mark.parametrize("case", ["90x110", "60x60_deficient"])
def test_sfid_is_that_of_the_reference(golden, case: str) -> None:
    given = golden(f"eval/sfid_{case}")
    rows = [given[f"in.maps{i}"][:, :7].permute(0, 2, 3, 1).flatten(1).numpy() for i in (1, 2)]
    assert np.allclose(rows[0][0], given["out.rows1_first"].numpy())
    a, b = map(moments_of, rows)
    tolerance = 1e-5 * float(a.covariance.trace() + b.covariance.trace())
    assert frechet(a, b) == pytest.approx(float(given["out.sfid.torch_fidelity"]), abs=tolerance)


@pytest.mark.parametrize("case", ["120x37", "64x5_sorted"])
def test_inception_score_is_that_of_both_references(golden, case: str) -> None:
    given = arrays(golden(f"eval/is_{case}"))
    logits, checked = given["in.logits"], 0
    for key, want in given.items():
        name = key.removeprefix("out.")
        if name.startswith("adm_split_size_"):
            got, tolerance = adm_score(logits, int(name.rpartition("_")[2])).mean(), 1e-4
        elif name.endswith("_splits_mean") or name.endswith("_splits_std"):
            splits = int(name.split("_splits")[0].rpartition("_")[2])
            scores = shuffled_score(logits, splits, 2020 if name.startswith("shuffled") else None)
            got, tolerance = (scores.mean() if name.endswith("mean") else scores.std()), 1e-6
        else:
            continue
        assert got == pytest.approx(float(want), rel=tolerance, abs=2e-6), name
        checked += 1
    assert checked >= 10


def test_inception_score_where_it_is_known() -> None:
    sure = np.eye(8) * 200
    assert adm_score(sure) == pytest.approx([8])
    assert adm_score(np.repeat(sure[:1], 8, axis=0)) == pytest.approx([1])


def test_inception_score_depends_on_the_order_of_the_files_and_says_so() -> None:
    by_class = np.repeat(np.eye(10) * 50, 10, axis=0)
    mixed = by_class[np.random.default_rng(0).permutation(100)]
    assert adm_score(by_class, 10).mean() == pytest.approx(1)
    assert adm_score(mixed, 10).mean() > 4


@pytest.mark.parametrize("case", ["float64_160_d32", "float64_close_100_d16", "float32_220x140_d48"])
def test_kernel_distance_is_that_of_torch_fidelity(golden, case: str) -> None:
    given = arrays(golden(f"eval/kid_{case}"))
    subsets, size = given["in.rows1"].shape
    seed = {"float64_160_d32": 2020, "float64_close_100_d16": 3, "float32_220x140_d48": 7}[case]
    values = kernel_distances(given["in.x1"], given["in.x2"], subsets, size, seed)
    tolerance = 1e-5 * np.abs(given["out.subset_mmd2"]).max() if "float32" in case else 1e-9
    assert np.abs(values - given["out.subset_mmd2"]).max() <= tolerance + 1e-7 * np.abs(values).max()
    assert values.mean() == pytest.approx(float(given["out.mean_fp64"]), rel=1e-7, abs=tolerance)
    assert values.std() == pytest.approx(float(given["out.std_fp64"]), rel=1e-7, abs=tolerance)


def test_kernel_distance_of_whole_sets_is_that_of_the_reference(golden) -> None:
    given = arrays(golden("eval/kid_float64_160_d32"))
    x, y = given["in.x1"], given["in.x2"]
    assert squared_mmd(x, y) == pytest.approx(float(given["out.full_unbiased"]), rel=1e-7)
    assert squared_mmd(x, y, biased=True) == pytest.approx(float(given["out.full_biased"]), rel=1e-7)
    assert squared_mmd(x, x) == pytest.approx(float(given["out.full_unbiased_same_set"]), rel=1e-7)
    assert squared_mmd(x, x, biased=True) == pytest.approx(0, abs=1e-9)


def test_kernel_distance_has_an_interval_where_subsets_say_something() -> None:
    features = np.random.default_rng(0).normal(size=(2000, 4))
    [score] = KID.measure(FeatureSet(2000, features), FeatureSet(2000, features[::-1]), 0)
    assert score.interval is not None and score.interval[0] < score.value < score.interval[1]
    [score] = KID.measure(FeatureSet(50, features[:50]), FeatureSet(2000, features), 0)
    assert score.interval is None and score.details["subset_size"] == 50


@pytest.mark.parametrize("case", ["100x140_d24", "200x90_d16_k5", "130x130_d64_overflow"])
def test_precision_and_recall_are_those_of_guided_diffusion(golden, case: str, monkeypatch) -> None:
    given = arrays(golden(f"eval/pr_{case}"))
    samples, reference = given["in.samples"], given["in.reference"]
    neighbours = 5 if "k5" in case else 3
    whole = precision_recall(samples, reference, neighbours)
    assert whole.precision == pytest.approx(float(given["out.adm_precision"]), abs=1e-6)
    assert whole.recall == pytest.approx(float(given["out.adm_recall"]), abs=1e-6)
    radii = squared_radii(reference, neighbours).numpy()
    tolerance = 1e-4 if "overflow" in case else 2e-2
    assert np.abs(radii - given["out.radii_reference"]).max() <= tolerance * radii.max()
    monkeypatch.setattr("davae.evaluate.distances.precision_recall._ROWS", 17)
    monkeypatch.setattr("davae.evaluate.distances.precision_recall._COLUMNS", 23)
    assert precision_recall(samples, reference, neighbours) == whole


def test_precision_and_recall_need_more_images_than_neighbours() -> None:
    with pytest.raises(ValueError, match="3 neighbours of an image; got 3 images. Give 4 or more"):
        precision_recall(np.zeros((3, 2)), np.zeros((9, 2)))


def test_cmmd_is_that_of_the_reference_in_any_blocks(golden, monkeypatch) -> None:
    given = arrays(golden("eval/cmmd_80x96_d40"))
    want = pytest.approx(float(given["out.cmmd_fp64"]), rel=1e-9)
    assert cmmd(given["in.x1"], given["in.x2"]) == want
    monkeypatch.setattr("davae.evaluate.distances.mmd._BLOCK", 7)
    assert cmmd(given["in.x1"], given["in.x2"]) == want


def test_mind_of_a_shift_is_three_times_its_squared_length() -> None:
    x = np.random.default_rng(0).normal(size=(50, 8))
    shift = np.arange(8) / 4
    # E (u . s)^2 = |s|^2 / d over unit directions u.
    assert mind(x, x + shift, directions=4000) == pytest.approx(3 * (shift**2).sum(), rel=0.05)
    assert mind(x, x[::-1]) == 0


def test_mind_refuses_sets_of_different_size() -> None:
    with pytest.raises(ValueError, match="as many images as references; got 3 and 4"):
        mind(np.zeros((3, 2)), np.zeros((4, 2)))


def test_a_frechet_distance_is_named_by_the_number_of_images() -> None:
    moments = moments_of(np.random.default_rng(0).normal(size=(9, 3)))
    columns = [
        labelled(FID.measure(FeatureSet(n, None, moments), FeatureSet(0, None, moments), 0)[0].column, n)
        for n in (500, 50_000)
    ]
    assert columns == ["FID-500", "FID-50k"]


def test_moments_in_blocks_are_those_of_the_whole() -> None:
    rows = np.random.default_rng(0).normal(size=(1300, 5)).astype(np.float32)
    moments = moments_of(rows)
    assert np.allclose(moments.mean, rows.astype(np.float64).mean(0), rtol=1e-12)
    assert np.allclose(moments.covariance, np.cov(rows.astype(np.float64).T), rtol=1e-10)
