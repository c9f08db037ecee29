"""The FID Inception against the reference evaluators, with weights that follow from their names."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from conftest import assert_close
from davae.evaluate.spaces.resize import preprocess
from davae.models.inception import InceptionFID
from tiny_inception import inception_weights


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return inception_weights()


@pytest.fixture(scope="module")
def network(weights: dict[str, Tensor]) -> InceptionFID:
    return InceptionFID(weights)


@pytest.mark.parametrize("protocol", ["adm", "pytorch-fid", "clean"])
def test_features_are_those_of_the_reference(golden, network, protocol) -> None:
    cases = [golden(f"eval/inception_{case}") for case in ("64a", "96x80", "320")]
    images = torch.stack([torch.from_numpy(preprocess(case["in.image"].numpy(), protocol, 299)) for case in cases])
    with torch.inference_mode():
        features = network(images)
    name = {"adm": "tf1", "pytorch-fid": "pytorch_fid", "clean": "clean"}[protocol]
    for row, case in enumerate(cases):
        assert_close(features.pool[row], case[f"out.{name}.pool"], 5e-4)
        assert_close(features.logits[row], case[f"out.{name}.logits_unbiased"], 5e-4)
        assert_close(features.spatial[row], case[f"out.{name}.spatial"], 5e-4)


def test_an_image_that_was_never_rounded_passes_as_well(golden, network) -> None:
    case = golden("eval/inception_float48x56")
    image = (case["in.image"] * 255).permute(1, 2, 0).numpy()
    with torch.inference_mode():
        features = network(torch.from_numpy(preprocess(image, "pytorch-fid", 299))[None])
    assert_close(features.pool[0], case["out.pytorch_fid.pool"], 5e-4)


def test_a_conversion_of_the_file_is_taken_and_counters_are_no_weights(weights, tmp_path: Path) -> None:
    tensors = {key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")}
    save_file(tensors, tmp_path / "inception.safetensors")
    InceptionFID.from_pretrained(tmp_path / "inception.safetensors")


def test_another_file_under_the_public_name_is_refused(weights, tmp_path: Path) -> None:
    path = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    torch.save({"fc.bias": weights["fc.bias"]}, path)
    with pytest.raises(ValueError, match=r"got sha256 .* expected 6726825d"):
        InceptionFID.from_pretrained(path)


def test_without_the_file_the_message_says_what_to_fetch() -> None:
    with pytest.raises(FileNotFoundError, match=r"FID Inception .* Fetch by hand, once"):
        InceptionFID.from_pretrained()


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_weights_that_are_not_the_networks_are_refused(weights, change: str) -> None:
    tensors = dict(weights)
    if change == "missing":
        del tensors["Mixed_6d.branch1x1.conv.weight"]
    elif change == "unknown":
        tensors["AuxLogits.conv0.conv.weight"] = torch.zeros(1)
    else:
        tensors["fc.weight"] = tensors["fc.weight"][:1000]
    with pytest.raises(ValueError, match="not the weights of the FID Inception"):
        InceptionFID(tensors)


def test_the_tests_weights_are_the_golden_ones(weights) -> None:
    assert weights["Conv2d_1a_3x3.conv.weight"].flatten()[:3].tolist() == pytest.approx(
        [0.3851044774055481, 0.16488389670848846, 0.42856645584106445]
    )
    assert weights["fc.bias"].double().sum().item() == pytest.approx(-3.25513446, rel=1e-8)
