"""CLIP scores against the reference evaluators, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil

from davae.evaluate.clip_score import CLIP_SCORE, HESSEL, clip_score
from davae.models.clip import Clip, preprocess
from tiny_judges import build_tiny_clip, build_tiny_detector


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return Clip.from_pretrained(str(build_tiny_clip(tmp_path_factory.mktemp("clip"))))


@pytest.mark.parametrize("case", ["clip_score_40_d48", "clip_score_12_d16_negative"])
def test_scores_are_those_of_the_references(case: str, golden) -> None:
    tensors = golden(f"eval/{case}")
    image, text = tensors["in.image"], tensors["in.text"]
    scores = CLIP_SCORE.scores(image, text, float(tensors["in.logit_scale"].exp()))
    assert torch.allclose(scores, tensors["out.per_pair"].double(), atol=1e-4)
    assert float(scores.mean()) == pytest.approx(float(tensors["out.dcgen"]), abs=1e-4)
    assert float(HESSEL.scores(image, text, 1.0).mean()) == pytest.approx(float(tensors["out.hessel"]), abs=1e-6)


@pytest.mark.parametrize("size", [(300, 300), (224, 224), (300, 200), (20, 35)])
def test_preprocessing_is_that_of_transformers_slow_processor(size: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))
    want = CLIPImageProcessorPil()(image, return_tensors="pt")["pixel_values"][0]
    assert torch.allclose(preprocess(image, 224), want, atol=1e-5)


def _images(count: int, side: int = 20) -> dict[str, Tensor]:
    return {f"{i}.png": torch.randint(0, 256, (3, side, side + i), dtype=torch.uint8) for i in range(count)}


def test_the_score_is_the_mean_over_images_in_any_batch_and_order(clip: Clip) -> None:
    images = _images(7)
    captions = {name: f"a red box {name[0]}" for name in images}
    whole = clip_score(images.items(), captions, clip)
    parts = clip_score(reversed(images.items()), captions, clip, batch=2)
    assert parts.value == pytest.approx(whole.value, rel=1e-5)
    alone = [clip_score([(n, image)], {n: captions[n]}, clip).value for n, image in images.items()]
    assert whole.value == pytest.approx(np.mean(alone), rel=1e-5)
    assert whole.low < whole.value < whole.high
    assert whole.images == 7


def test_what_a_score_depends_on_stands_beside_it(clip: Clip) -> None:
    captions = {"0.png": "a red box", "1.png": "a red box and " + "many " * 20}
    protocol = clip_score(_images(2).items(), captions, clip, HESSEL).protocol
    assert protocol["score"] == "mean of 2.5 x max(cosine, 0), captions after 'A photo depicts'"
    assert protocol["captions cut"] == 2
    assert len(protocol["weights"]) == 32
    assert clip_score(_images(2).items(), captions, clip).protocol["captions cut"] == 1


def test_captions_and_images_that_do_not_match_are_refused_by_name(clip: Clip) -> None:
    images = _images(2)
    with pytest.raises(ValueError, match=r"1 captions have no image, that of 7\.png the first"):
        clip_score(images.items(), {**dict.fromkeys(images, "a"), "7.png": "a"}, clip)
    with pytest.raises(ValueError, match=r"Image 1\.png has no caption"):
        clip_score(images.items(), {"0.png": "a"}, clip)
    with pytest.raises(ValueError, match="got none"):
        clip_score([], {}, clip)


def test_a_score_that_is_not_finite_is_refused_by_name(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip, "images", lambda images: torch.tensor([[1.0] * 8, [float("nan")] * 8]))
    with pytest.raises(ValueError, match=r"CLIP score of 1\.png is not finite"):
        clip_score(_images(2).items(), dict.fromkeys(_images(2), "a"), clip)


def test_a_model_that_is_not_there_or_another_one_is_refused(clip: Clip, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder, and no OWNER/NAME"):
        Clip.from_pretrained(str(tmp_path / "nowhere" / "at" / "all"))
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        Clip.from_pretrained(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="Give --clip a folder"):
        Clip.from_pretrained("nobody/nothing")
    with pytest.raises(ValueError, match="type 'mask2former'; --clip takes type 'clip'"):
        Clip.from_pretrained(str(build_tiny_detector(tmp_path / "detector")))


def test_a_model_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    folder = build_tiny_clip(tmp_path / "clip")
    config, weights = (folder / "config.json").read_text(), (folder / "model.safetensors").read_bytes()
    (folder / "config.json").write_text(config.replace('"projection_dim": 8', '"projection_dim": 16'))
    with pytest.raises(
        ValueError, match="not complete: got no weights, or some of another shape, for text_projection"
    ):
        Clip.from_pretrained(str(folder))
    (folder / "config.json").write_text(config)
    (folder / "model.safetensors").write_bytes(weights[:1000])
    with pytest.raises(FileNotFoundError, match=f"Cannot load a CLIPModel from {folder}"):
        Clip.from_pretrained(str(folder))
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="tokenizer in .* is not that of its model"):
        Clip.from_pretrained(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        Clip.from_pretrained(str(folder))
