"""The procedural images: the same bits however they are asked for, and the scenes that they promise."""

import pickle
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from davae.data.solids import HUES, MATERIALS, SHAPES, SolidsSource
from davae.data.splits import open_train_test

EVERY_CLASS_TWICE = range(36)


@pytest.mark.parametrize("size", [64, 100])
def test_an_image_does_not_depend_on_its_batch(size: int) -> None:
    source = SolidsSource(90, seed=7)
    together = source.images(range(90), size)
    assert together.shape == (90, 3, size, size)
    assert together.dtype == torch.uint8
    backwards = source.images(range(89, -1, -1), size)
    assert torch.equal(backwards.flip(0), together)
    for index in range(90):
        assert torch.equal(source.images([index], size)[0], together[index]), source.all_captions[index]
    assert torch.equal(source.images(range(90), (size - 10, size)), together[:, :, 5:-5])
    repeated = [68, 5, 68, 68, 14]
    assert torch.equal(source.images(repeated, size), together[repeated])


def test_another_source_of_the_seed_has_the_same_bits() -> None:
    source = SolidsSource(36, seed=3)
    images = source.images(EVERY_CLASS_TWICE, 32)
    longer = SolidsSource(1000, seed=3)
    assert torch.equal(longer.images(EVERY_CLASS_TWICE, 32), images)
    assert longer.ids[:36] == source.ids
    assert longer.all_captions[:36] == source.all_captions
    torch.rand(7)  # the global generator has no say
    assert torch.equal(pickle.loads(pickle.dumps(source)).images(EVERY_CLASS_TWICE, 32), images)


def test_another_seed_has_other_scenes() -> None:
    one, other = SolidsSource(36, seed=3), SolidsSource(36, seed=4)
    assert one.fingerprint != other.fingerprint
    assert set(one.ids).isdisjoint(other.ids)
    difference = (one.images(EVERY_CLASS_TWICE, 32).float() - other.images(EVERY_CLASS_TWICE, 32).float()).abs()
    assert difference.flatten(1).mean(dim=1).min() > 4


def test_a_scene_is_the_same_at_every_resolution() -> None:
    source = SolidsSource(36, seed=7)
    small, large = (source.images(EVERY_CLASS_TWICE, size).float() for size in (64, 128))
    reduced = F.avg_pool2d(large, 2)
    own = (reduced - small).abs().flatten(1).mean(dim=1)
    assert own.max() < 4  # of 255
    other_scene = (reduced - small.roll(18, dims=0)).abs().flatten(1).mean(dim=1)  # of the same class
    assert (own < other_scene / 4).all()


def test_only_the_large_image_holds_the_fine_material() -> None:
    source = SolidsSource(180, seed=7)
    large = source.images(range(180), 128).float()
    back = F.interpolate(F.avg_pool2d(large, 2), scale_factor=2, mode="bicubic", align_corners=False)
    lost = (large - back)[:, :, 44:84, 44:84].square().mean(dim=(1, 2, 3))  # inside the solid, without its outline
    energy = {
        name: torch.stack([value for value, label in zip(lost, source.labels, strict=True) if label == index]).mean()
        for index, name in enumerate(source.class_names)
    }
    for shape in SHAPES:
        for material in MATERIALS[1:]:
            # Edges of a plain box are lost too; the material comes on top.
            assert energy[f"{material} {shape}"] - energy[f"plain {shape}"] > 6, energy


def test_classes_are_every_material_on_every_shape_and_balanced() -> None:
    source = SolidsSource(180)
    assert len(source.class_names) == len(set(source.class_names)) == 18
    assert set(source.class_names) == {f"{material} {shape}" for material in MATERIALS for shape in SHAPES}
    assert Counter(source.labels) == dict.fromkeys(range(18), 10)
    assert len(SolidsSource(100).labels) == len(SolidsSource(100)) == 100
    assert max(Counter(SolidsSource(100).labels).values()) == 6
    assert SolidsSource(5).class_names == source.class_names


def test_a_caption_names_what_the_label_says_and_the_hue() -> None:
    source = SolidsSource(180)
    for label, (caption,) in zip(source.labels, source.all_captions, strict=True):
        article, material, hue, shape = caption.split()
        assert (article, f"{material} {shape}") == ("a", source.class_names[label])
        assert hue in HUES
    assert {caption.split()[2] for (caption,) in source.all_captions} == set(HUES)


def test_the_hue_of_a_caption_is_the_hue_of_the_solid() -> None:
    """The centre of a plain solid is reddest where it says red, and so on."""
    source = SolidsSource(18 * 40)
    plain = [index for index in range(len(source)) if source.all_captions[index][0].startswith("a plain")]
    colours: dict[str, list[torch.Tensor]] = {}
    for index, image in zip(plain, source.images(plain, 32), strict=True):
        colours.setdefault(source.all_captions[index][0].split()[2], []).append(
            image[:, 12:20, 12:20].float().mean((1, 2))
        )
    mean = {hue: torch.stack(values).mean(dim=0) for hue, values in colours.items()}
    for hue, channel in (("red", 0), ("green", 1), ("blue", 2)):
        assert mean[hue].argmax() == channel, mean


def test_images_are_no_blanks() -> None:
    images = SolidsSource(36, seed=1).images(EVERY_CLASS_TWICE, 48).float()
    assert images.flatten(1).std(dim=1).min() > 10
    assert images.flatten(2).mean(dim=2).min() > 5
    assert images.flatten(2).mean(dim=2).max() < 250


def test_the_fingerprint_says_what_the_set_holds() -> None:
    prints = {SolidsSource(count, seed).fingerprint for count, seed in ((8, 0), (9, 0), (8, 1), (9, 1))}
    assert len(prints) == 4
    assert SolidsSource(8, 0).fingerprint == SolidsSource(8, 0).fingerprint


def test_training_and_test_scenes_are_disjoint() -> None:
    train, test = open_train_test("solids", None, 32, test=36, count=36, seed=5)
    assert (len(train), len(test)) == (36, 36)
    assert set(train.ids).isdisjoint(test.ids)
    assert train.fingerprint != test.fingerprint
    assert train.class_names == test.class_names
    difference = (train.images(range(36), 32).float() - test.images(range(36), 32).float()).abs()
    assert difference.flatten(1).mean(dim=1).min() > 4


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one image; got count 0"):
        SolidsSource(0)
