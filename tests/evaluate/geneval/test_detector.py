"""The judge of our own: post-processing in closed form, crops and colours against the official ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from davae.evaluate.geneval.colors import ColorClassifier, color_classifier, color_logits, object_crop
from davae.evaluate.geneval.detections import judge_one
from davae.evaluate.geneval.detector import DetectorJudge
from davae.evaluate.geneval.images import PromptImage
from davae.evaluate.geneval.prompts import Item, Prompt
from davae.evaluate.geneval.rules import Box
from davae.evaluate.geneval.words import COLORS
from davae.models.clip import Clip
from davae.models.mask2former import Mask2Former, Mask2FormerNetwork, segments
from tiny_judges import build_tiny_clip, build_tiny_detector


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> DetectorJudge:
    folder = tmp_path_factory.mktemp("judges")
    network = Mask2FormerNetwork.from_pretrained(build_tiny_detector(folder / "detector")).eval()
    clip = Clip.from_pretrained(str(build_tiny_clip(folder / "clip")))
    return DetectorJudge(Mask2Former(network, "tiny", lowest=0.0, size=(64, 96)), ColorClassifier(clip))


def test_colours_are_those_of_the_reference(golden) -> None:
    tensors = golden("eval/color_d32")
    classifier = color_classifier(tensors["in.text"])
    assert torch.allclose(classifier, tensors["out.classifier"], atol=1e-5)
    logits = color_logits(tensors["in.image"], classifier)
    assert torch.allclose(logits, tensors["out.logits"], atol=1e-3)
    assert logits.argmax(dim=1).tolist() == tensors["out.index"].tolist()


def test_crops_are_the_official_ones(golden) -> None:
    tensors = golden("eval/geneval_crops")
    image = Image.fromarray(tensors["in.image"].numpy())

    def crop(number: int, masked: bool = True) -> np.ndarray:
        left, top, right, bottom = tensors[f"in.box{number}"][:4].tolist()
        mask = tensors[f"in.mask{number}"].numpy() if masked else None
        found = object_crop(image, (left, top, right, bottom), mask)
        return np.asarray(found).reshape(found.height, found.width, 3)

    for number in range(6):
        assert np.array_equal(crop(number), tensors[f"out.crop{number}"].numpy()), number
    assert np.array_equal(crop(1, masked=False), tensors["out.crop1_without_mask"].numpy())


def test_objects_that_overlap_keep_their_own_masks_boxes_and_scores() -> None:
    classes = torch.tensor([[4.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 9.0]])  # the third query says "none"
    masks = torch.full((3, 4, 4), -20.0)
    masks[0, 0:3, 0:2] = 20.0
    masks[1, 1:4, 0:2] = 20.0
    found = segments(classes, masks, seen=(4, 4), size=(8, 8), lowest=0.5)
    assert [(item.label, item.box) for item in found] == [(0, (0.0, 0.0, 4.0, 6.0)), (1, (0.0, 2.0, 4.0, 8.0))]
    likely = classes.softmax(dim=1)
    assert [item.score for item in found] == pytest.approx([float(likely[0, 0]), float(likely[1, 1])], abs=1e-6)
    assert [int(item.mask.sum()) for item in found] == [24, 24]


def test_a_score_is_lowered_by_an_unsure_mask_and_an_empty_one_is_no_object() -> None:
    classes = torch.tensor([[9.0, 0.0], [9.0, 0.0]])
    masks = torch.stack([torch.full((4, 4), 1.0), torch.full((4, 4), -1.0)])
    (only,) = segments(classes, masks, seen=(4, 4), size=(4, 4))
    probability = float(classes[0].softmax(dim=0)[0])
    assert only.score == pytest.approx(probability * torch.tensor(1.0).sigmoid().item() * 16 / (16 + 1e-6), abs=1e-6)
    assert only.box == (0.0, 0.0, 4.0, 4.0)


@pytest.mark.parametrize(
    ("size", "seen"), [((512, 512), (800, 800)), ((1024, 512), (1333, 667)), ((300, 200), (1200, 800))]
)
def test_images_are_brought_to_the_size_that_the_detector_was_trained_at(
    size: tuple[int, int], seen: tuple[int, int], judge: DetectorJudge
) -> None:
    detector = Mask2Former(judge._detector._network, "tiny")
    height, width = detector._pixels(Image.new("RGB", size)).shape[-2:]
    assert (width, height) == tuple(-(-side // 32) * 32 for side in seen)


def _image(tmp_path: Path, prompt: Prompt) -> PromptImage:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "0000.png")
    return PromptImage("0000.png", (tmp_path / "0000.png").read_bytes, prompt)


def test_what_is_seen_decides_and_colours_are_named_where_they_are_asked(
    judge: DetectorJudge, tmp_path: Path
) -> None:
    plain = _image(tmp_path, Prompt("x", "single_object", (Item("person", 1),)))
    seen = judge.look(plain)
    assert seen.objects
    assert all(item.color is None for item in seen.objects)
    # The tiny detector is sure of nothing: a prompt that takes what it says needs scores above the threshold.
    judge._detector._network.class_predictor.bias.data[0] += 20
    judge._detector._network.class_predictor.bias.data[-1] -= 20
    item = Item("person", 1, color="red")
    coloured = PromptImage(plain.name, plain.read, Prompt("x", "colors", (item,)))
    seen = judge.look(coloured)
    surest = max((item for item in seen.objects if item.name == "person"), key=lambda item: item.detection.score)
    assert surest.color in COLORS
    assert sum(item.color is not None for item in seen.objects) == 1
    assert judge_one(coloured, seen).correct == (surest.color == "red")


def test_boxes_lie_in_the_image(judge: DetectorJudge, tmp_path: Path) -> None:
    def inside(box: Box) -> bool:
        return 0 <= box[0] < box[2] <= 64 and 0 <= box[1] < box[3] <= 48

    seen = judge.look(_image(tmp_path, Prompt("x", "single_object", (Item("person", 1),))))
    assert all(inside(item.detection.box) for item in seen.objects)


def test_an_image_that_cannot_be_read_is_named(judge: DetectorJudge, tmp_path: Path) -> None:
    image = _image(tmp_path, Prompt("x", "single_object", (Item("person", 1),)))
    (tmp_path / image.name).write_bytes(image.read()[:300])
    with pytest.raises(ValueError, match=r"Cannot judge .*0000\.png"):
        judge.look(image)


def test_a_detector_of_other_classes_is_refused(judge: DetectorJudge, tmp_path: Path) -> None:
    other = Mask2FormerNetwork.from_pretrained(build_tiny_detector(tmp_path / "detector", classes=5))
    with pytest.raises(ValueError, match="80 classes of COCO in their order; got 5"):
        DetectorJudge(Mask2Former(other, "tiny"), judge._colors)
    swapped = Mask2Former(judge._detector._network, "tiny")
    swapped.labels[:2] = ["bicycle", "person"]
    with pytest.raises(ValueError, match="where bicycle is number 0"):
        DetectorJudge(swapped, judge._colors)
    swapped.labels[:4] = ["person", "bicycle", "car", "motorbike"]
    DetectorJudge(swapped, judge._colors)
