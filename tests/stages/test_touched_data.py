"""Data that were touched, moved or corrected between two runs: what depends on it is made again, and no more."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from davae.data.prompt_cache import PromptCache
from davae.data.solids import SolidsSource
from davae.data.splits import open_train_test
from davae.train.checkpoint import CheckpointStore
from davae.train.diffusion import DiffusionTask
from davae.train.tokenizer import TokenizerTask
from tiny_pair import build_tiny_pair
from tiny_run import run, skipped
from tiny_text import MAX_LENGTH, build_tiny_text_pair

RECIPE = """
name: text
seed: 1
data: {{path: {folder}/photos, test_count: 8, workers: 0}}
pair: {folder}/sd3
image_size: 32
tokenizer: {{steps: 2, batch_size: 4, calibration_images: 8, log_every: 1, checkpoint_every: 2}}
cache: {{batch_size: 8, shard_size: 16}}
prompts: {{max_length: {length}, batch_size: 8, shard_size: 4, dtype: float32}}
finetune:
  {{steps: 3, batch_size: 8, detail_warmup_steps: 2, log_every: 1, checkpoint_every: 2, lora: {{rank: 2}}}}
sample: {{count: 4, steps: 2, batch_size: 4, guidance_scale: 2.5}}
"""
STAGES = ["tokenizer", "cache", "prompts", "finetune", "sample"]
Go = Callable[..., str]


def write_photos(folder: Path, count: int = 24) -> None:
    folder.mkdir(parents=True)
    source = SolidsSource(count, seed=11)
    for index, image in enumerate(source.images(range(count), 40).permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image).save(folder / f"{index:02d}.png")
        (folder / f"{index:02d}.txt").write_text(f"{source.captions[index][0]} {index}")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos/, sd3/ and runs/, in it a finished run."""
    folder = tmp_path_factory.mktemp("made")
    build_tiny_text_pair(folder / "sd3")
    write_photos(folder / "photos")
    (folder / "text.yaml").write_text(RECIPE.format(folder=folder, length=MAX_LENGTH))
    status, said = run(folder / "text.yaml", folder / "runs")
    assert status == 0, said
    return folder


@pytest.fixture
def photos(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "photos", tmp_path / "photos"))


@pytest.fixture
def go(made: Path, photos: Path, tmp_path: Path) -> Go:
    """Run the recipe on `photos`, with what was made from the same photos elsewhere."""
    runs = tmp_path / "runs"
    if not runs.exists():
        shutil.copytree(made / "runs", runs)

    def goes_on(*arguments: str, fails: bool = False) -> str:
        status, said = run(made / "text.yaml", runs, "--set", f"data.path={photos}", *arguments)
        assert status == int(fails), said
        return said

    return goes_on


def parts(photos: Path) -> tuple[list[str], list[str]]:
    train, test = open_train_test("auto", str(photos), 32, 8, 0, 0)
    return list(train.ids), list(test.ids)


def correct(photos: Path, image: str) -> None:
    path = (photos / image).with_suffix(".txt")
    path.write_text(path.read_text() + " very red")


def test_a_copy_without_times_is_the_same_set(photos: Path, go: Go) -> None:
    photos.rename(photos.with_name("old"))
    shutil.copytree(photos.with_name("old"), photos, copy_function=shutil.copy)
    assert skipped(go()) == STAGES


def test_a_corrected_caption_is_encoded_and_costs_no_training(photos: Path, go: Go) -> None:
    runs = photos.with_name("runs") / "text"
    before = {path: path.stat().st_mtime_ns for path in (runs / "prompts").glob("prompts-*")}
    correct(photos, parts(photos)[0][5])
    said = go()
    assert skipped(said) == ["tokenizer", "cache", "finetune", "sample"]
    assert "finetune: captions changed since this training" in said
    changed = [path.name for path, time in before.items() if path.stat().st_mtime_ns != time]
    assert len(changed) == 1
    assert len(PromptCache(runs / "prompts")) == 16
    assert skipped(go()) == STAGES


def test_a_corrected_caption_of_a_test_image_draws_other_samples(photos: Path, go: Go) -> None:
    correct(photos, parts(photos)[1][0])
    said = go()
    assert skipped(said) == ["tokenizer", "cache", "prompts", "finetune"]
    assert "captions changed" not in said


def test_another_training_image_is_another_set(photos: Path, go: Go) -> None:
    image = photos / parts(photos)[0][0]
    whole = image.read_bytes()
    Image.new("RGB", (40, 40), "red").save(image)
    assert re.search(r"finished tokenizer with other settings: data: images-16-\w+ -> images-16-", go(fails=True))
    image.write_bytes(whole)
    assert skipped(go()) == STAGES
    image.unlink()
    assert "-> images-15-" in go(fails=True)


def test_a_run_that_is_killed_copied_and_corrected_trains_nothing_twice(
    photos: Path, go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(photos.with_name("runs"))
    steps: list[str] = []
    for task, method in ((TokenizerTask, "loss"), (DiffusionTask, "loss")):
        plain = getattr(task, method)

        def counted(self: Any, learner: str, *rest: Any, plain: Any = plain, name: str = task.__name__) -> Any:
            steps.append(f"{name} {learner}")
            return plain(self, learner, *rest)

        monkeypatch.setattr(task, method, counted)
    save = CheckpointStore.save

    def saved(self: CheckpointStore, step: int, groups: Any) -> Path:
        path = save(self, step, groups)
        if self.folder.name == "finetune":
            raise KeyboardInterrupt
        return path

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "save", saved)
        with pytest.raises(AssertionError):  # an exit status of 130
            go()
    before = list(steps)
    assert before.count("DiffusionTask transformer") == 2
    photos.rename(photos.with_name("old"))
    shutil.copytree(photos.with_name("old"), photos, copy_function=shutil.copy)
    correct(photos, parts(photos)[0][3])
    assert skipped(go()) == ["tokenizer", "cache"]
    assert steps == [*before, "DiffusionTask transformer"]


def as_earlier_versions_wrote_it(runs: Path) -> None:
    for path in (runs / "run.json", runs / "latents" / "manifest.json"):
        text = path.read_text()
        for number in (16, 8):
            text = re.sub(rf"images-{number}-[0-9a-f]{{32}}", f"{'ab' * 32}-train-by-id-{number}", text)
        path.write_text(text)


def test_what_was_made_when_times_counted_stands_and_is_told_apart_by_contents_then(photos: Path, go: Go) -> None:
    runs = photos.with_name("runs") / "text"
    as_earlier_versions_wrote_it(runs)
    said = go()
    assert skipped(said) == STAGES
    assert said.count("there are as many, so it stands") == 2  # tokenizer and cache
    assert "abab" not in json.dumps(json.loads((runs / "run.json").read_text())["stages"]["tokenizer"])
    assert "there are as many" not in go()
    as_earlier_versions_wrote_it(runs)
    (photos / parts(photos)[0][0]).unlink()
    assert "finished tokenizer with other settings" in go(fails=True)


def test_images_without_captions_are_refused_before_anything_is_trained(photos: Path, go: Go) -> None:
    shutil.rmtree(photos.with_name("runs"))
    train, test = parts(photos)
    for name in test:
        (photos / name).with_suffix(".txt").unlink()
    assert "none with a caption" in (said := go(fails=True))
    assert "Or set sample.prompts to a file of prompts" in said
    for name in train[1:]:
        (photos / name).with_suffix(".txt").write_text(" ")
    (photos / train[0]).with_suffix(".txt").unlink()
    said = go("--set", "sample=null", fails=True)
    assert "Cannot train on prompts: got 16 images of data, none with a caption" in said
    assert "NAME.txt beside NAME.jpg" in said
    assert not (photos.with_name("runs") / "text" / "run.json").exists()


def test_a_corrected_label_costs_what_is_trained_on_labels(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    write_photos(photos)
    labels = {f"{number:02d}.png": number % 3 for number in range(24)}

    def write() -> None:
        rows = [json.dumps({"file_name": name, "label": label}) for name, label in labels.items()]
        (photos / "metadata.jsonl").write_text("\n".join(rows))

    write()
    values = yaml.safe_load(RECIPE.format(folder=tmp_path, length=0))
    values |= {"pair": str(build_tiny_pair(tmp_path / "pair"))}
    del values["prompts"], values["sample"], values["finetune"]["lora"]
    (tmp_path / "classes.yaml").write_text(yaml.safe_dump(values))
    status, said = run(tmp_path / "classes.yaml", tmp_path / "runs")
    assert status == 0, said
    train, _ = parts(photos)
    labels[train[0]] = (labels[train[0]] + 1) % 3
    write()
    status, said = run(tmp_path / "classes.yaml", tmp_path / "runs")
    assert (status, skipped(said)) == (1, ["tokenizer", "cache"])
    assert "finished finetune with other settings: cache.source: labelled-images-16-" in said
