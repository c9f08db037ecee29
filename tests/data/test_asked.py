"""What images were asked to show: by a file of prompts, by what their folder says, or by the name of the folder."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from davae.data.asked import asked_of
from davae.data.errors import DataError
from davae.data.image_list import open_images
from davae.data.solids import SolidsSource, attributes_of


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    for number in range(4):
        write(tmp_path / "drawn" / f"{number:06d}.png")
    write(tmp_path / "drawn" / "grid.png")
    (tmp_path / "drawn" / "inputs.json").write_text("{}")  # as beside the samples of a run
    (tmp_path / "prompts.txt").write_text("a plain red box\na striped blue sphere\n")
    return tmp_path / "drawn"


def test_by_a_file_of_prompts_as_many_of_each(numbered: Path) -> None:
    images = open_images(numbered)
    assert len(images) == 4  # the grid of the first images is none
    red, blue = "a plain red box", "a striped blue sphere"
    assert asked_of(images, numbered.parent / "prompts.txt") == [red, red, blue, blue]


def test_by_what_the_folder_says(numbered: Path) -> None:
    rows = [f'{{"file_name": "{number:06d}.png", "text": "caption {number}"}}\n' for number in range(4)]
    (numbered / "metadata.jsonl").write_text("".join(rows))
    assert asked_of(open_images(numbered)) == [f"caption {number}" for number in range(4)]


def test_by_the_name_of_the_folder(tmp_path: Path) -> None:
    for name in ("striped box", "plain sphere"):
        write(tmp_path / name / "1.png")
    assert asked_of(open_images(tmp_path)) == ["plain sphere", "striped box"]


def test_of_an_array_by_prompts_alone(numbered: Path) -> None:
    file = numbered.parent / "images.npz"
    np.savez(file, arr_0=np.zeros((4, 4, 4, 3), np.uint8))
    assert len(asked_of(open_images(file), numbered.parent / "prompts.txt")) == 4
    with pytest.raises(DataError, match="got no captions; give --prompts FILE"):
        asked_of(open_images(file))
    (numbered.parent / "prompts.txt").write_text("one\ntwo\nthree\n")
    with pytest.raises(DataError, match="4 images of .* do not match 3 prompts"):
        asked_of(open_images(file), numbered.parent / "prompts.txt")


def test_images_that_nothing_speaks_of_are_refused(numbered: Path) -> None:
    with pytest.raises(DataError, match="has no caption"):
        asked_of(open_images(numbered))


def test_a_caption_and_a_class_name_say_what_a_solid_is() -> None:
    source = SolidsSource(24, seed=5)
    for label, caption in zip(source.labels, source.captions, strict=True):
        said = attributes_of(caption)
        assert divmod(label, 6) == (said["shape"], said["material"])
        assert attributes_of(source.class_names[label]) == {"shape": said["shape"], "material": said["material"]}
