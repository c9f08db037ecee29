"""`davae prompts` on images as people have them: with captions, with some, with none."""

from pathlib import Path

import pytest
import yaml
from PIL import Image

from davae.data.errors import DataError
from davae.data.prompt_cache import PromptCache
from davae.recipe import parse_recipe
from davae.run.run import Run
from davae.stages import prompts
from tiny_text import MAX_LENGTH, build_tiny_text_pair

RECIPE = """
name: captions
data: {{path: {photos}, test_count: 1, workers: 0}}
pair: {pair}
image_size: 32
tokenizer: {{steps: 1, batch_size: 2}}
cache: {{}}
prompts: {{max_length: {length}, batch_size: 2, dtype: float32}}
finetune: {{steps: 1, batch_size: 2, lora: {{rank: 2}}, preview: {{prompts: [a red box]}}}}
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_text_pair(tmp_path_factory.mktemp("pair") / "sd3")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (32, 32), (50 * number, 0, 0)).save(folder / f"{number}.png")
    return folder


def opened(photos: Path, pair: Path, runs: Path, extra: str = "") -> Run:
    text = RECIPE.format(photos=photos, pair=pair, length=MAX_LENGTH) + extra
    return Run(parse_recipe(yaml.safe_load(text)), runs)


@pytest.mark.parametrize("text", [None, " \n"], ids=["no files", "blank files"])
def test_images_without_any_caption_are_refused(photos: Path, pair: Path, tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (photos / "0.txt").write_text(text)
    run = opened(photos, pair, tmp_path)
    with pytest.raises(
        DataError, match=r"train on prompts: got 3 images of data, none with a caption .*\.png.*NAME\.txt"
    ):
        prompts.STAGE.run(run)
    assert not (run.folder.prompts()).exists()


def test_the_second_set_of_images_is_named(photos: Path, pair: Path, tmp_path: Path) -> None:
    extra = f"realism: {{steps: 1, batch_size: 2, data: {{path: {photos}, test_count: 1, workers: 0}}}}\n"
    with pytest.raises(DataError, match=r"train on prompts: got 3 images of realism\.data"):
        prompts.REALISM.run(opened(photos, pair, tmp_path, extra))


def test_one_caption_is_enough(photos: Path, pair: Path, tmp_path: Path) -> None:
    for number in range(4):
        (photos / f"{number}.txt").write_text("a red box" if number > 1 else "")
    run = opened(photos, pair, tmp_path)
    prompts.STAGE.run(run)
    cache = PromptCache(run.folder.prompts())
    cache.require_ids([*run.data.finetune.ids, "preview: a red box"])
    assert (len(cache), cache.num_prompts) == (4, 2)
