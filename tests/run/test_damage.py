"""A run whose files were damaged: what can be made again is made again, the rest is named with what to do."""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from davae.core.lock import LockedError
from davae.core.state import StateError
from davae.data.errors import DataError
from davae.data.latent_cache import LatentCache, is_complete
from davae.evaluate.results import Results
from davae.run.record import Record
from davae.run.samples import stand
from davae.run.writer import LOCK, only_writer
from davae.train.checkpoint import CheckpointError, CheckpointStore
from davae.train.journal import rows
from tiny_run import STAGES, run, skipped, weights

DAMAGES = ["", '{"a', "null", "[]", "{}"]
STATE = ["run.json", "latents/manifest.json", "results.json", "samples/inputs.json", "stats.jsonl"]


def flip(path: Path, place: int = -5) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def anew(said: str) -> list[str]:
    return [name for name in STAGES if name not in skipped(said)]


@pytest.mark.parametrize(
    ("name", "again"),
    [
        ("run.json", []),
        ("latents/manifest.json", ["cache"]),
        ("results.json", ["evaluate", "report"]),
        ("samples/inputs.json", ["sample"]),
        ("stats.jsonl", []),
        ("recipe.yaml", []),
    ],
)
def test_damaged_state_is_made_again(recipe: Path, copied: Path, name: str, again: list[str]) -> None:
    before = weights(copied)
    (copied / name).write_text(DAMAGES[len(name) % len(DAMAGES)])
    status, said = run(recipe, copied.parent)
    assert status == 0, said
    assert anew(said) == again
    assert weights(copied) == before
    assert anew(run(recipe, copied.parent)[1]) == []


@pytest.mark.parametrize(
    ("name", "place", "stage"),
    [
        ("latents/latents-00000016.safetensors", -5, "cache"),
        ("samples/latents-000008.safetensors", -1, "sample"),
        ("samples/000003.png", -30, "sample"),
    ],
)
def test_a_bit_that_flips_is_noticed_and_made_right(
    recipe: Path, copied: Path, name: str, place: int, stage: str
) -> None:
    before = (copied / name).read_bytes()
    stat = (copied / name).stat()
    flip(copied / name, place)
    os.utime(copied / name, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    status, said = run(recipe, copied.parent)
    assert status == 0, said
    assert anew(said) == [stage]
    assert (copied / name).read_bytes() == before


@pytest.mark.parametrize("name", ["tokenizer", "pipeline/transformer"])
def test_damaged_weights_are_refused_and_made_again_as_the_message_says(
    recipe: Path, copied: Path, name: str
) -> None:
    before = weights(copied)
    flip(copied / name / "diffusion_pytorch_model.safetensors")
    status, said = run(recipe, copied.parent)
    said = " ".join(said.split())
    assert (status, "diffusion_pytorch_model.safetensors is not what was saved" in said) == (1, True), said
    folder = copied / name.partition("/")[0]
    assert f"remove {folder} and run the same command" in said
    shutil.rmtree(folder)
    assert run(recipe, copied.parent)[0] == 0
    assert weights(copied) == before


def test_a_record_without_a_whole_copy_says_what_to_do_and_that_loses_nothing(recipe: Path, copied: Path) -> None:
    before, journal = weights(copied), (copied / "stats.jsonl").read_bytes()
    for name in ("run.json", "run.json.bak"):
        (copied / name).write_text("{}")
    status, said = run(recipe, copied.parent)
    said = " ".join(said.split())
    assert (status, "run.json is damaged" in said, "remove it, run.json.bak and recipe.yaml" in said) == (
        1,
        True,
        True,
    )
    for name in ("run.json", "run.json.bak", "recipe.yaml"):
        (copied / name).unlink()
    status, said = run(recipe, copied.parent)
    assert status == 0, said
    assert weights(copied) == before
    assert (copied / "stats.jsonl").read_bytes() == journal


def read_everything(folder: Path, name: str) -> None:
    """What the owner of a state file makes of it."""
    match name:
        case "run.json":
            record = Record(folder / name, "tiny")
            assert record.held_out_by in ("id", "position")
            for stage in STAGES:
                assert isinstance((record.stage(stage) or {"inputs": {}})["inputs"], dict)
        case "latents/manifest.json":
            assert len(LatentCache(folder / "latents")) >= 0
        case "results.json":
            Results.load(folder / name)
        case "samples/inputs.json":
            stand(folder / "samples" / "grid.png")
        case "stats.jsonl":
            assert all(isinstance(row["step"], int) for row in rows(folder / name))
        case _:
            CheckpointStore((folder / name).parents[1], {}).latest()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_is_in_a_state_file_ends_in_no_traceback(finished: Path, fuzzed: Path, data: st.DataObject) -> None:
    checkpoint = sorted(finished.glob("checkpoints/tokenizer/*/checkpoint.json"))[-1].relative_to(finished).as_posix()
    name = data.draw(st.sampled_from([*STATE, checkpoint]))
    whole = (finished / name).read_bytes()
    at = data.draw(st.integers(0, len(whole)))
    noise = data.draw(st.one_of(st.binary(max_size=8), st.sampled_from([b"null", b"[]", b"{}", b"1e999", b"NaN"])))
    end = data.draw(st.sampled_from([at, at + 1, at + 5, len(whole)]))
    (fuzzed / name).write_bytes(whole[:at] + noise + whole[end:])
    (fuzzed / "run.json.bak").unlink(missing_ok=True)
    try:
        read_everything(fuzzed, name)
    except (StateError, DataError, CheckpointError) as error:
        assert str(fuzzed) in str(error)  # noqa: PT017
    finally:
        (fuzzed / name).write_bytes(whole)


@pytest.fixture(scope="module")
def fuzzed(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(finished, tmp_path_factory.mktemp("fuzzed") / "tiny"))
    assert is_complete(folder / "latents")
    return folder


def test_the_second_of_two_runs_is_refused_at_once(recipe: Path, copied: Path) -> None:
    (copied / ".half.elsewhere.7.tmp").mkdir()
    with only_writer(copied, "Run tiny", is_main=True):
        status, said = run(recipe, copied.parent)
        said = " ".join(said.split())
        assert (status, f"Run tiny is being written by process {os.getpid()} on" in said) == (1, True), said
        assert "skipped" not in said
        assert run(recipe, copied.parent, "--dry-run")[0] == 0
        with pytest.raises(LockedError), only_writer(copied, "Run tiny", is_main=True):
            pass
        assert {path.name for path in copied.rglob(".*")} == {LOCK, f"{LOCK}.json"}
    assert anew(run(recipe, copied.parent)[1]) == []
    assert not list(copied.rglob(".*"))
