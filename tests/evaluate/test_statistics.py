"""Statistics files of all kinds: whose they are taken to be, read, written, and refused where they do not compare."""

from pathlib import Path

import numpy as np
import pytest

from davae.data.errors import DataError
from davae.evaluate.metric import Moments
from davae.evaluate.spaces import inception
from davae.evaluate.statistics import StatisticsFile, open_reference, write_statistics
from tiny_space import arrays, tiny_space

MOMENTS = {"mu": np.arange(4.0), "sigma": np.eye(4)}
SPATIAL = {"mu_s": np.zeros(3), "sigma_s": np.eye(3)}


def opened(path: Path, **content: np.ndarray) -> StatisticsFile:
    np.savez(path, **content)
    file = open_reference(path).statistics
    assert file is not None
    return file


@pytest.mark.parametrize(
    ("name", "content", "kind", "protocol"),
    [
        ("VIRTUAL_imagenet256_labeled.npz", {**MOMENTS, **SPATIAL}, "guided-diffusion's layout", "adm"),
        ("ref.npz", MOMENTS, "pytorch-fid's layout", "pytorch-fid"),
        ("mjhq30k_clean_custom_na.npz", MOMENTS, "clean-fid's, mode clean", "clean"),
        ("x_legacy_tensorflow_custom_na.npz", MOMENTS, "clean-fid's, mode legacy_tensorflow", "adm"),
    ],
)
def test_a_file_of_others_is_known_by_keys_and_name(tmp_path, name, content, kind, protocol) -> None:
    file = opened(tmp_path / name, **content)
    assert file.kind == kind
    assert file.identities["inception"] == inception.identity(protocol)
    assert file.has("inception", "pool", "moments")
    assert file.has("inception", "spatial", "moments") == ("mu_s" in content)
    assert not file.has("inception", "pool", "rows")
    assert np.array_equal(file.moments("inception", "pool").mean, MOMENTS["mu"])


def test_guided_diffusions_file_is_images_and_statistics(tmp_path: Path) -> None:
    np.savez(tmp_path / "ref.npz", arr_0=arrays(3, seed=0), **MOMENTS, **SPATIAL)
    reference = open_reference(tmp_path / "ref.npz")
    assert reference.images is not None and len(reference.images) == 3
    assert reference.statistics is not None


def test_another_preprocessing_is_refused_and_both_are_named(tmp_path: Path) -> None:
    file = opened(tmp_path / "ref.npz", **MOMENTS)
    file.require(tiny_space(**inception.identity("pytorch-fid")))
    with pytest.raises(ValueError, match=r"its preprocessing is 'pytorch-fid: .* here it is 'clean: "):
        file.require(tiny_space(**inception.identity("clean")))


def test_another_extractor_is_refused_and_both_are_named(tmp_path: Path) -> None:
    write_statistics(
        tmp_path / "r.npz", 9, {"inception": tiny_space()}, {}, {("inception", "pool"): MOMENTS["sigma"]}, {}
    )
    file = open_reference(tmp_path / "r.npz").statistics
    assert file is not None
    file.require(tiny_space())
    with pytest.raises(ValueError, match="its weights is '0', here it is '1'"):
        file.require(tiny_space(weights="1"))


def test_what_was_written_is_read_and_other_tools_find_their_names(tmp_path: Path) -> None:
    moments = Moments(np.arange(2.0), np.eye(2))
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    write_statistics(
        tmp_path / "r.npz",
        3,
        {"inception": tiny_space(), "dinov2": tiny_space("dinov2")},
        {("inception", "pool"): moments, ("dinov2", "class"): moments},
        {("inception", "pool"): rows},
        {"path": "x"},
    )
    assert {"mu", "sigma"} <= set(np.load(tmp_path / "r.npz").files)
    file = open_reference(tmp_path / "r.npz").statistics
    assert file is not None and file.count == 3
    assert np.array_equal(file.moments("dinov2", "class").covariance, np.eye(2))
    assert np.array_equal(file.rows("inception", "pool")[:], rows)
    assert not file.has("dinov2", "class", "rows")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"mu": np.zeros(4)}, "got no sigma"),
        ({"features": np.zeros(4)}, "got arrays features"),
        ({"mu": np.zeros(4), "sigma": np.eye(3)}, r"a mean \[4\] and a covariance \[3, 3\]"),
        ({"mu": np.full(4, np.nan), "sigma": np.eye(4)}, "not finite"),
        ({"davae": np.frombuffer(b'{"format": 99}', np.uint8)}, "write it again with 'davae statistics'"),
        ({"davae": np.frombuffer(b"\xff", np.uint8)}, "write it again with 'davae statistics'"),
    ],
)
def test_a_file_that_is_none_is_refused_in_a_sentence(tmp_path: Path, content, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        opened(tmp_path / "ref.npz", **content).moments("inception", "pool")
