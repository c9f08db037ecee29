"""`davae generate` on a tiny upgraded SD3: files and shards, resuming, what stands beside an image, bad input."""

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import davae
from davae.core import checked
from davae.core.lock import LockedError
from davae.core.observer import Silent
from davae.core.pixels import enlarge, signed_to_unit, unit_to_uint8
from davae.data.captioned_images import captioned_images
from davae.data.prompt_list import read_prompts
from davae.data.shard_writer import ShardWriter
from davae.data.shards import ShardSource
from davae.evaluate.geneval.images import find_images
from davae.models.adapter import adapt
from davae.run.writer import only_writer
from davae.sampling import stock_text
from davae.sampling.engine import Engine
from davae.sampling.sampler import preview
from davae.sampling.settings import SamplerSettings
from davae.sampling.text_sampler import TextSampler, TypedPrompts
from davae.sampling.upscaling import open_upscaler
from davae.sampling.upscaling.network import NetworkUpscaler
from davae.tools.generate.generate import generate
from davae.tools.generate.settings import Generation
from davae.tools.generate.text_source import SavedPipeline
from tiny_pair import build_tiny_pair
from tiny_text import MAX_LENGTH, build_tiny_text_pair, tiny_text_pipeline

pytestmark = pytest.mark.filterwarnings("ignore:This AutoencoderDA has not been trained")
PROMPTS = ["a red cube", "a striped sphere", "a blue box"]
QUICK = {"steps": 2, "guidance": 4.0, "max_length": MAX_LENGTH, "batch": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_text_pair(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("upgraded")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        davae.upgrade(tiny_text_pipeline(), scale=2, init="random").save_pretrained(folder)
    return folder


class Listener(Silent):
    """An observer that remembers."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.steps: list[Any] = []

    def begin(self, stage: str, total: int, done: int = 0) -> None:
        self.steps.append((total, done))

    def advance(self, done: int, values: Any = None) -> None:
        self.steps.append(done)

    def end(self) -> None:
        self.steps.append("end")

    def say(self, message: str) -> None:
        self.messages.append(message)


def pixels(path: Path) -> NDArray[np.int64]:
    """[H, W, 3]."""
    return np.array(Image.open(path)).astype(np.int64)


def as_pixels(image: torch.Tensor) -> NDArray[np.int64]:
    """[3, H, W] -> [H, W, 3]."""
    return image.permute(1, 2, 0).numpy().astype(np.int64)


def sampler_of(pipe: Any, size: int, seed: int = 0, prompts: list[str] = PROMPTS) -> TextSampler:
    settings = SamplerSettings(steps=2, guidance_scale=4.0, seed=seed)
    return TextSampler(pipe, settings, TypedPrompts(pipe, prompts, MAX_LENGTH), (size, size))


def loaded(source: SavedPipeline, engine: Engine | None = None) -> Any:
    engine, cpu = engine or Engine(), torch.device("cpu")
    return engine.start(source.load(engine, cpu), cpu)


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Name -> when it was written, and what it holds."""
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def never(*_: Any, **__: Any) -> None:
    raise AssertionError("nothing is missing, so nothing is loaded")


def test_what_is_drawn_is_judged_by_its_prompts(pair: Path, base: Path, tmp_path: Path) -> None:
    metadata, out = tmp_path / "evaluation_metadata.jsonl", tmp_path / "out"
    asked = [
        {"tag": "single_object", "include": [{"class": "cup", "count": 1}], "prompt": prompt}
        for prompt in PROMPTS[:2]
    ]
    metadata.write_text("".join(f"{json.dumps(entry)}\n" for entry in asked))
    settings = Generation(**QUICK, count=2)
    generate(SavedPipeline(pair), read_prompts(metadata), out, settings, baseline=SavedPipeline(base))
    for kind, end in (("", ".png"), ("baseline", "-baseline.png")):
        want = [(f"{index:06d}{end}", PROMPTS[index // 2]) for index in range(4)]
        assert [(image.name, image.prompt.text) for image in find_images(out, metadata, kind)] == want
        for prompts in (metadata, None):
            assert [(image.name, image.caption) for image in captioned_images(out, prompts, kind)] == want


def test_files_with_facts_and_a_grid(pair: Path, tmp_path: Path) -> None:
    out, listener = tmp_path / "out", Listener()
    generate(SavedPipeline(pair), PROMPTS[:2], out, Generation(**QUICK, count=2, seed=7), observer=listener)
    names = [f"{index:06d}{end}" for index in range(4) for end in (".json", ".png")]
    assert sorted(path.name for path in out.iterdir()) == [*names, "generation.json", "grid.png"]
    assert listener.steps == [(4, 0), 2, 4, "end"]
    facts = json.loads((out / "000002.json").read_text())
    assert (facts["prompt"], facts["seed"]) == (PROMPTS[1], 9)
    assert facts["settings"]["height"] == 32
    assert facts["settings"]["guidance"] == 4.0

    sampler = sampler_of(loaded(SavedPipeline(pair)), 32, seed=9, prompts=[PROMPTS[1]])
    difference = pixels(out / "000002.png") - as_pixels(sampler.images(sampler.latents([0]))[0])
    assert abs(difference).max() <= 1  # another batch


def test_shards_are_a_data_set_that_we_train_on(pair: Path, tmp_path: Path) -> None:
    settings = Generation(**QUICK, count=2, shards=True, shard_size=4)
    generate(SavedPipeline(pair), PROMPTS, tmp_path / "out", settings)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("000000.tar", "000001.tar", "generation.json")
    ]
    source = ShardSource(tmp_path / "out", min_side=32)
    assert list(source.all_captions) == [(prompt,) for prompt in PROMPTS for _ in range(2)]
    assert source.ids[5] == "000001/000000005"
    assert source.images(range(6), 32).float().std() > 1


def test_a_second_call_draws_what_is_missing(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = SavedPipeline(pair), tmp_path / "out"
    settings = Generation(**QUICK, shards=True, shard_size=2)
    generate(source, PROMPTS, out, settings)
    first, second = (out / "000000.tar").read_bytes(), (out / "000001.tar").read_bytes()
    (out / "000001.tar").unlink()
    stamp = (out / "000000.tar").stat().st_mtime_ns
    listener = Listener()
    generate(source, PROMPTS, out, settings, observer=listener)
    assert listener.steps == [(3, 2), 3, "end"]
    assert (out / "000001.tar").read_bytes() == second
    assert ((out / "000000.tar").stat().st_mtime_ns, (out / "000000.tar").read_bytes()) == (stamp, first)

    monkeypatch.setattr(SavedPipeline, "load", never)
    generate(source, PROMPTS, out, settings)


def as_before(pair: Path, **settings: Any) -> dict[str, Any]:
    """generation.json as earlier versions wrote it, for three prompts."""

    def digest(value: Any) -> str:
        return hashlib.blake2b(repr(value).encode(), digest_size=8).hexdigest()

    files = sorted(file for file in pair.rglob("*") if file.suffix in (".json", ".safetensors"))
    stamps = [(str(file.relative_to(pair)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    inputs = {
        "pipeline": str(pair),
        "height": 32,
        "width": 32,
        "steps": 2,
        "guidance": 4.0,
        "guidance_interval": [0.0, 1.0],
        "negative": "",
        "max_length": MAX_LENGTH,
        "dtype": "fp32",
        "quantize": None,
        "step_cache": None,
        "seed": 0,
        "count": 1,
        "form": "png",
        "shards": False,
        "source": {"path": str(pair), "files": digest(stamps)},
        "baseline": None,
        "prompts": f"3, {digest(PROMPTS)}",
        "first_prompt": PROMPTS[0],
        "kinds": [""],
    }
    return inputs | settings


def test_a_folder_of_an_earlier_version_goes_on(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = SavedPipeline(pair), tmp_path / "out"
    out.mkdir()
    (out / "generation.json").write_text(json.dumps(as_before(pair), indent=1, sort_keys=True))
    for index in range(3):
        Image.new("RGB", (32, 32), (index, 0, 0)).save(out / f"{index:06d}.png")
        (out / f"{index:06d}.json").write_text(json.dumps({"prompt": PROMPTS[index], "seed": index}))
    kept = contents(out)
    with monkeypatch.context() as patch:
        patch.setattr(SavedPipeline, "load", never)
        generate(source, PROMPTS, out, Generation(**QUICK))
    after = contents(out)
    assert after.keys() - kept.keys() == {"grid.png"}
    assert {name: after[name] for name in kept if name != "generation.json"} == {
        name: value for name, value in kept.items() if name != "generation.json"
    }
    (out / "000002.png").unlink()  # the second batch of two
    listener = Listener()
    generate(source, PROMPTS, out, Generation(**QUICK), observer=listener)
    assert listener.steps == [(3, 2), 3, "end"]
    assert pixels(out / "000002.png").std() > 1
    assert contents(out)["000001.png"] == kept["000001.png"]


def test_shards_of_an_earlier_version_go_on(pair: Path, base: Path, tmp_path: Path) -> None:
    settings, out = Generation(**QUICK, shards=True, shard_size=2), tmp_path / "out"
    out.mkdir()
    (out / "generation.json").write_text(json.dumps(as_before(pair, shards=True, shard_size=2), indent=1))
    with ShardWriter(out / "000000.tar") as shard:
        shard.write("000000000", {"png": png(7), "txt": PROMPTS[0], "json": {}})
    kept, listener = contents(out)["000000.tar"], Listener()
    generate(SavedPipeline(pair), PROMPTS, out, settings, observer=listener)
    assert listener.steps == [(3, 2), 3, "end"]
    assert sorted(contents(out)) == ["000000.tar", "000001.tar", "generation.json"]
    assert contents(out)["000000.tar"] == kept
    # What stands beside an image is told apart from images alone.
    generate(SavedPipeline(pair), PROMPTS[:1], out, settings, baseline=SavedPipeline(base))
    assert sorted(contents(out)) == [f"{number:06d}.tar" for number in range(3)] + ["generation.json"]
    with tarfile.open(out / "000002.tar") as shard:
        assert shard.getnames()[:2] == ["000000004.png", "000000004.baseline.png"]


@pytest.mark.parametrize("change", [{"seed": 1}, {"count": 3}, {}])
def test_a_folder_of_an_earlier_version_is_added_to_by_nothing_else(
    pair: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    (tmp_path / "generation.json").write_text(json.dumps(as_before(pair)))
    kept = contents(tmp_path)
    with pytest.raises(ValueError, match="by an earlier version"):
        generate(SavedPipeline(pair), PROMPTS if change else PROMPTS[:2], tmp_path, Generation(**QUICK, **change))
    assert contents(tmp_path) == kept


def test_a_pipeline_is_what_it_holds_wherever_it_lies(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, out = Path(shutil.copytree(pair, tmp_path / "pair")), tmp_path / "out"
    monkeypatch.chdir(tmp_path)
    generate(SavedPipeline(pair), PROMPTS[:1], out, Generation(**QUICK))
    with monkeypatch.context() as patch:
        patch.setattr(SavedPipeline, "load", never)
        (other / "vae" / "config.json").touch()
        for name in ("pair", "pair/", "./pair", str(other)):
            generate(SavedPipeline(name), PROMPTS[:1], out, Generation(**QUICK))
    (other / "scheduler" / "scheduler_config.json").write_bytes(
        (other / "scheduler" / "scheduler_config.json").read_bytes() + b"\n"
    )
    generate(SavedPipeline(other), PROMPTS[:1], out, Generation(**QUICK))
    assert len(list(out.glob("0*.png"))) == 2


def test_a_file_that_did_not_change_is_not_read_again(pair: Path, tmp_path: Path, monkeypatch: Any) -> None:
    other, read = Path(shutil.copytree(pair, tmp_path / "pair")), []
    before, hashed = SavedPipeline(other).identity, checked.file_hash

    def noted(path: Path) -> str:
        read.append(path.name)
        return hashed(path)

    monkeypatch.setattr(checked, "file_hash", noted)
    assert SavedPipeline(other).identity == before
    assert read == []
    (other / "vae" / "config.json").touch()
    assert SavedPipeline(other).identity == before
    assert read == ["config.json"]


def test_the_negative_prompt_and_each_batch_are_encoded_once_for_both_pipelines(
    pair: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[list[str]] = []
    encode = stock_text.encode

    def counted(pipe: Any, prompts: Any, max_length: int) -> dict[str, Any]:
        encoded.append(list(prompts))
        return encode(pipe, prompts, max_length)

    monkeypatch.setattr(stock_text, "encode", counted)
    settings = Generation(**QUICK, negative="a box")
    generate(SavedPipeline(pair), PROMPTS, tmp_path / "out", settings, baseline=SavedPipeline(base))
    assert encoded == [PROMPTS[:2], ["a box"], PROMPTS[2:]]


def test_an_interruption_leaves_whole_shards(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = SavedPipeline(pair), tmp_path / "out"
    settings = Generation(**{**QUICK, "batch": 1}, shards=True, shard_size=2)
    latents, calls = TextSampler.latents, [0]

    def interrupted(self: TextSampler, indices: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4:
            raise KeyboardInterrupt
        return latents(self, indices)

    monkeypatch.setattr(TextSampler, "latents", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(source, [*PROMPTS, "a cube"], out, settings)
    assert sorted(path.name for path in out.iterdir()) == ["000000.tar", "generation.json"]
    monkeypatch.undo()
    generate(source, [*PROMPTS, "a cube"], out, settings)
    assert len(ShardSource(out, min_side=32)) == 4


def drawn(out: Path) -> list[tuple[str, int]]:
    """(prompt, seed) of the images of a folder."""
    facts = [json.loads(path.read_text()) for path in sorted(out.glob("0*.json"))]
    return [(entry["prompt"], entry["seed"]) for entry in facts]


def images(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("0*")}


def test_other_prompts_and_settings_are_added(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = SavedPipeline(pair), tmp_path / "out"
    generate(source, PROMPTS[:1], out, Generation(**QUICK))
    first = images(out)
    generate(source, PROMPTS[1:2], out, Generation(**QUICK))
    generate(source, PROMPTS, out, Generation(**QUICK))  # a file of prompts that grew
    generate(source, PROMPTS[:1], out, Generation(**{**QUICK, "guidance": 2.0}, seed=5))
    red, striped, blue = PROMPTS
    assert drawn(out) == [(red, 0), (striped, 0), (striped, 1), (blue, 2), (red, 5)]
    assert images(out).items() >= first.items()
    assert json.loads((out / "000004.json").read_text())["settings"]["guidance"] == 2.0
    stand = images(out)
    with monkeypatch.context() as patch:
        patch.setattr(SavedPipeline, "load", never)
        generate(source, PROMPTS, out, Generation(**QUICK))
        generate(source, PROMPTS[:1], out, Generation(**{**QUICK, "batch": 1}))  # how it is drawn does not matter
    (out / "000003.png").write_bytes(stand["000003.png"][:-20])  # cut off
    generate(source, PROMPTS, out, Generation(**QUICK))
    assert images(out) == stand


def test_shards_of_two_calls_stand_side_by_side(pair: Path, tmp_path: Path) -> None:
    source, out, settings = SavedPipeline(pair), tmp_path / "out", Generation(**QUICK, shards=True, shard_size=2)
    generate(source, PROMPTS, out, settings)
    generate(source, [*PROMPTS, "a cube"], out, settings)
    found = ShardSource(out, min_side=32)
    assert list(found.captions) == [*PROMPTS, "a cube"]
    assert [name.partition("/")[0] for name in found.ids] == ["000000", "000000", "000001", "000002"]


def test_another_form_is_refused(pair: Path, tmp_path: Path) -> None:
    source, out = SavedPipeline(pair), tmp_path / "out"
    generate(source, PROMPTS[:1], out, Generation(**QUICK))
    for change, got in (({"form": "jpg"}, "jpg files"), ({"shards": True, "shard_size": 3}, "png in shards of 3")):
        with pytest.raises(ValueError, match=f"keeps images as png files; got {got}"):
            generate(source, PROMPTS, out, Generation(**QUICK, **change))


@pytest.mark.parametrize("damage", ["", '{"a', "null", "[]", "{}", '{"format_version": 2}'])
def test_a_damaged_album_is_named_and_an_empty_one_is_begun_anew(pair: Path, tmp_path: Path, damage: str) -> None:
    source = SavedPipeline(pair)
    (tmp_path / "generation.json").write_text(damage)
    generate(source, PROMPTS[:1], tmp_path, Generation(**QUICK))
    (tmp_path / "generation.json").write_text(damage)
    kept = contents(tmp_path)
    with pytest.raises(ValueError, match=r"generation\.json is damaged.*or give another folder"):
        generate(source, PROMPTS[:1], tmp_path, Generation(**QUICK))
    assert contents(tmp_path) == kept


def test_a_folder_is_drawn_into_by_one_command(pair: Path, tmp_path: Path) -> None:
    with only_writer(tmp_path, "x", is_main=True), pytest.raises(LockedError, match=f"Folder {tmp_path} is being"):
        generate(SavedPipeline(pair), PROMPTS, tmp_path, Generation(**QUICK))


def test_a_folder_of_something_else_is_refused(pair: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="did not write"):
        generate(SavedPipeline(pair), PROMPTS, tmp_path, Generation(**QUICK))


def test_preview_and_baseline_stand_beside_the_image(pair: Path, base: Path, tmp_path: Path) -> None:
    settings, out = Generation(**QUICK, preview=True), tmp_path / "out"
    generate(SavedPipeline(pair), PROMPTS[:2], out, settings, baseline=SavedPipeline(base))
    assert {path.suffix for path in out.glob("000000*")} == {".png", ".json"}
    assert (pixels(out / "000001-preview.png").shape, pixels(out / "000001-baseline.png").shape) == ((32, 32, 3),) * 2

    pipe = tiny_text_pipeline()
    small = signed_to_unit(adapt(pipe.vae).decode(sampler_of(pipe, 16).latents([0, 1])))
    enlarged = as_pixels(unit_to_uint8(enlarge(small, 32))[1])
    assert abs(pixels(out / "000001-baseline.png") - enlarged).max() <= 1

    pipe = loaded(SavedPipeline(pair))
    shown = preview(pipe, sampler_of(pipe, 32).latents([0, 1]))
    assert abs(pixels(out / "000001-preview.png") - as_pixels(shown[1])).max() <= 1
    with Image.open(out / "grid.png") as grid:
        assert grid.height > 3 * 32  # a row each


def test_the_baseline_is_enlarged_by_what_is_asked_for(pair: Path, base: Path, tmp_path: Path) -> None:
    settings, out, sources = Generation(**QUICK), tmp_path / "out", (SavedPipeline(pair), SavedPipeline(base))
    lanczos = open_upscaler("lanczos")
    generate(sources[0], PROMPTS[:2], out, settings, baseline=sources[1], upscaler=lanczos)
    sampler = sampler_of(tiny_text_pipeline(), 16)
    small = sampler.images(sampler.latents([0, 1]))
    assert abs(pixels(out / "000001-baseline.png") - as_pixels(lanczos(small, (32, 32))[1])).max() <= 1
    assert json.loads((out / "000001.json").read_text())["settings"]["upscaler"]["upscaler"] == "lanczos"
    generate(sources[0], PROMPTS[:1], out, settings, baseline=sources[1])
    assert "upscaler" not in json.loads((out / "000002.json").read_text())["settings"]  # another image, beside it
    with pytest.raises(ValueError, match="there is no baseline. Add --baseline"):
        generate(sources[0], PROMPTS[:2], tmp_path / "other", settings, upscaler=lanczos)
    too_small = NetworkUpscaler("x1", torch.nn.Identity(), 1, {})
    with pytest.raises(ValueError, match="cannot be enlarged: 16x16 is too small: x1 makes 16x16"):
        generate(sources[0], PROMPTS[:2], tmp_path / "other", settings, baseline=sources[1], upscaler=too_small)
    assert not (tmp_path / "other").exists()


def test_baseline_in_shards_is_not_a_second_image(pair: Path, base: Path, tmp_path: Path) -> None:
    settings = Generation(**QUICK, shards=True)
    generate(SavedPipeline(pair), PROMPTS, tmp_path / "out", settings, baseline=SavedPipeline(base))
    with tarfile.open(tmp_path / "out" / "000000.tar") as shard:
        assert [name for name in shard.getnames() if name.startswith("000000002")] == [
            f"000000002.{end}" for end in ("png", "baseline.png", "txt", "json")
        ]
    assert len(ShardSource(tmp_path / "out", min_side=32)) == 3


def test_jpeg(pair: Path, tmp_path: Path) -> None:
    generate(SavedPipeline(pair), PROMPTS[:1], tmp_path / "out", Generation(**QUICK, form="jpg", height=48))
    assert Image.open(tmp_path / "out" / "000000.jpg").size == (32, 48)


def test_long_prompts_are_named_once(pair: Path, tmp_path: Path) -> None:
    listener = Listener()
    long = "a " + "red " * 20 + "cube"
    settings = Generation(**QUICK, count=2)
    generate(SavedPipeline(pair), [*PROMPTS, long], tmp_path / "out", settings, observer=listener)
    assert len(listener.messages) == 1
    assert "1 of the prompts" in listener.messages[0]
    assert "a red red" in listener.messages[0]


@pytest.mark.parametrize(
    ("engine", "changes"),
    [({"dtype": "bf16"}, True), ({"quantize": "fp8"}, True), ({"quantize": "fp8", "dtype": "bf16"}, True)],
)
def test_engines_draw(pair: Path, tmp_path: Path, engine: dict[str, Any], changes: bool) -> None:
    plain, other = tmp_path / "plain", tmp_path / "other"
    generate(SavedPipeline(pair), PROMPTS[:1], plain, Generation(**QUICK))
    generate(SavedPipeline(pair), PROMPTS[:1], other, Generation(**QUICK), Engine(**engine))
    images = [pixels(folder / "000000.png") for folder in (plain, other)]
    assert (images[0] != images[1]).any() == changes
    assert abs(images[0] - images[1]).mean() < 8


@pytest.mark.parametrize("offload", ["model", "group"])
def test_offload_changes_nothing(pair: Path, offload: Any) -> None:
    """diffusers' hooks work with a CPU as the device too, which no user needs."""
    results = []
    for engine in (Engine(), Engine(offload=offload)):
        pipe = loaded(SavedPipeline(pair), engine)
        sampler = sampler_of(pipe, 32)
        latents = sampler.latents([0])
        results.append((latents, sampler.images(latents), preview(pipe, latents)))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"dtype": "fp4"}, "no dtype 'fp4'; allowed are fp32, bf16, fp16"),
        ({"offload": "disk"}, "no offload 'disk'"),
        ({"quantize": "fp2"}, "no quantize 'fp2'"),
        ({"step_cache": "fast"}, "no step cache 'fast'"),
    ],
)
def test_wrong_engines_are_refused(engine: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Engine(**engine)


def test_quantisation_says_which_package_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("davae.sampling.engine.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install bitsandbytes"):
        Engine(quantize="nf4")
    monkeypatch.setattr("davae.sampling.engine.find_spec", lambda name: object())
    with pytest.raises(ValueError, match="nf4 needs an accelerator"):
        Engine(quantize="nf4").require(torch.device("cpu"))


@pytest.mark.parametrize(
    ("settings", "engine", "message"),
    [
        ({"height": 40}, {}, r"Height must be a multiple of 16 \(compression 8 x patch 2\); got 40"),
        ({"width": 144}, {}, "beyond the transformer's positions"),
        ({"height": 24}, {}, "Height must be a multiple of 16"),
        ({"guidance": 0.5}, {}, "at least 1"),
        ({"guidance_interval": (0.7, 0.2)}, {}, "start < end"),
        ({}, {"offload": "model"}, "Offload moves weights"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is_loaded(
    pair: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    engine: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setattr(SavedPipeline, "load", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ValueError, match=message):
        generate(
            SavedPipeline(pair), PROMPTS, tmp_path / "out", Generation(**{**QUICK, **settings}), Engine(**engine)
        )
    assert not (tmp_path / "out").exists()


def test_prompts_are_checked(pair: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Prompt 2 of 2 must be text"):
        generate(SavedPipeline(pair), ["a", " "], tmp_path / "out", Generation(**QUICK))


@pytest.mark.parametrize("name", ["steps", "count", "batch", "shard_size", "height", "max_length"])
def test_numbers_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a whole number(, at least 1| in .1, 65536.); got 0"):
        Generation(**{name: 0})


def test_sources_that_cannot_generate(pair: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="model_index.json is missing"):
        SavedPipeline(tmp_path)
    with pytest.raises(ValueError, match="LightningDiTPipeline.*'davae sample RECIPE' draws classes"):
        SavedPipeline(build_tiny_pair(tmp_path / "classes"))
    with pytest.raises(ValueError, match="this one is not upgraded"):
        generate(SavedPipeline(base), PROMPTS, tmp_path / "out", Generation(**QUICK, preview=True))
    with pytest.raises(ValueError, match="of 4 channels; got a StableDiffusion3Pipeline of 8"):
        generate(SavedPipeline(pair), PROMPTS, tmp_path / "out", Generation(**QUICK), baseline=SavedPipeline(pair))


def test_a_pair_that_does_not_match_is_refused(pair: Path, base: Path, tmp_path: Path) -> None:
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "model_index.json").write_text((base / "model_index.json").read_text())
    for part, folder in (("vae", pair), ("transformer", base)):
        (tmp_path / "mixed" / part).symlink_to(folder / part)
    with pytest.raises(ValueError, match="autoencoder has 8 latent channels, the transformer takes 4"):
        SavedPipeline(tmp_path / "mixed")


PROCESS = """
import os, sys
from pathlib import Path
from davae.tools.generate.generate import generate
from davae.tools.generate.job_sampler import JobSampler
from davae.tools.generate.settings import Generation
from davae.tools.generate.text_source import SavedPipeline
draw = JobSampler.draw
def noted(self, unit):
    Path(f"{sys.argv[2]}-{unit[0]}-{os.environ.get('RANK', 0)}").touch()
    return draw(self, unit)
JobSampler.draw = noted
settings = Generation(steps=2, guidance=4.0, max_length=12, batch=2, shards=True, shard_size=1)
generate(SavedPipeline(sys.argv[1]), ["a red cube", "a striped sphere", "a blue box"], Path(sys.argv[2]), settings)
"""


@pytest.mark.slow
def test_processes_share_the_work(pair: Path, tmp_path: Path) -> None:
    (tmp_path / "draw.py").write_text(PROCESS)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, launcher in (("one", []), ("two", launch)):
        command = [sys.executable, *launcher, tmp_path / "draw.py", pair, tmp_path / name]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.glob("one-*")} == {"one-0-0", "one-1-0", "one-2-0"}
    assert {path.name for path in tmp_path.glob("two-*")} == {"two-0-0", "two-1-1", "two-2-0"}  # shard, process
    shards = [sorted(folder.glob("*.tar")) for folder in (tmp_path / "one", tmp_path / "two")]
    assert [path.name for path in shards[0]] == ["000000.tar", "000001.tar", "000002.tar"]
    assert [path.read_bytes() for path in shards[0]] == [path.read_bytes() for path in shards[1]]
