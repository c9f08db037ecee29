"""Fingerprints follow what a set holds; those of earlier versions are told from those of now."""

import os

import numpy as np
import pytest

from davae.data.fingerprints import are_of_other_kinds, identities, of_images, of_labelled_images

NAMES = ["a", "b", os.fsdecode(b"caf\xe9")]
CONTENTS = np.arange(48, dtype=np.uint8).reshape(3, 16)
EACH = identities(NAMES, CONTENTS)


def test_fingerprints_are_those_of_every_version() -> None:
    assert of_images(EACH) == "images-3-f0e4152ed462557e2348c8157e4c2f05"
    assert of_labelled_images(EACH, [0, 1, 1], ("x", "y")) == "labelled-images-3-4c4e7df0117d94b54ce949152aee75a0"


def test_order_is_no_part_of_a_fingerprint() -> None:
    turned = identities(NAMES[::-1], CONTENTS[::-1])
    assert of_images(turned) == of_images(EACH)
    assert of_labelled_images(turned, [1, 1, 0], ("x", "y")) == of_labelled_images(EACH, [0, 1, 1], ("x", "y"))


def test_each_part_counts() -> None:
    swapped = identities(NAMES, CONTENTS[[1, 0, 2]])
    fewer = EACH[:2]
    assert len({of_images(each) for each in (EACH, swapped, fewer)}) == 3
    labelled = {
        of_labelled_images(EACH, [0, 1, 1], ("x", "y")),
        of_labelled_images(EACH, [1, 0, 1], ("x", "y")),
        of_labelled_images(EACH, [0, 1, 1], ("xy", "")),
        of_labelled_images(EACH, [0, 1, 1], ("x", "z")),
        of_labelled_images(EACH, [0, 1, 1], ()),
    }
    assert len(labelled) == 5


@pytest.mark.parametrize(
    ("stored", "is_other"),
    [
        (f"{'0f' * 32}-train-by-id-3", True),
        (f"{'0f' * 32}-train-3", True),
        (f"{'0f' * 32}-train-by-id-9-32x32-3", True),
        ("0f" * 32, True),
        (f"{'0f' * 32}-train-by-id-4", False),
        (f"{'0f' * 31}-train-by-id-3", False),
        (f"images-3-{'0f' * 16}", False),
        ("solids-1-7-3", False),
        (3, False),
        (None, False),
    ],
)
def test_a_fingerprint_of_earlier_versions_stands_for_as_many_images(stored: object, is_other: bool) -> None:
    assert are_of_other_kinds(stored, of_images(EACH)) == is_other
    assert are_of_other_kinds(stored, of_labelled_images(EACH, [0, 1, 1], ())) == is_other
    assert not are_of_other_kinds(of_images(EACH), stored)
    assert not are_of_other_kinds(stored, "solids-1-7-3")
