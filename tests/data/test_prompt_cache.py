"""The prompt cache: rows by sample id, shared by equal captions, refused where it does not fit."""

import dataclasses
import json
import os
import pickle
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from davae.data.cache_files import Part
from davae.data.errors import DataError
from davae.data.prompt_cache import NULL, PromptCache, PromptManifest, PromptSet, is_complete, write_prompts

REMEDY = "davae prompts RECIPE"
CAPTIONS = {f"photo-{number}": (f"caption {number % 7}",) for number in range(40)} | {"bare": ()}


def manifest(prompts: PromptSet, **changes: Any) -> PromptManifest:
    values: dict[str, Any] = {
        "encoders": "aaa111",
        "max_length": 77,
        "dtype": "float16",
        "source": prompts.fingerprint,
        "tensors": {"prompt_embeds": ("float16", (3, 2)), "prompt_attention_mask": ("int64", (3,))},
    }
    return PromptManifest(**(values | changes))


def first_caption(sample: str) -> str:
    return next(iter(CAPTIONS.get(sample, ())), "")


def value(prompt: str) -> float:
    return float(prompt.removeprefix("caption ") or -1)


class Encoder:
    """Counts what it is asked for."""

    def __init__(self, prompts: PromptSet) -> None:
        self.prompts, self.asked = prompts, list[tuple[int, int]]()

    def __call__(self, first: int, count: int) -> Mapping[str, Tensor]:
        self.asked.append((first, count))
        values = torch.tensor([value(prompt) for prompt in self.prompts.prompts[first : first + count]])
        embeds = values.view(-1, 1, 1).expand(-1, 3, 2).half()
        return {"prompt_embeds": embeds, "prompt_attention_mask": values.long().view(-1, 1).expand(-1, 3)}


def build(folder: Path, captions: Mapping[str, Sequence[str]] = CAPTIONS, **changes: Any) -> Encoder:
    prompts = PromptSet.of(captions)
    encoder = Encoder(prompts)
    write_prompts(folder, manifest(prompts, **changes), prompts, 3, encoder)
    return encoder


@pytest.fixture
def cache(tmp_path: Path) -> PromptCache:
    build(tmp_path)
    return PromptCache(tmp_path)


def test_every_sample_gets_its_own_captions_row(cache: PromptCache) -> None:
    ids = ["photo-5", "bare", "photo-12", NULL, "photo-39", "photo-5"]
    got = cache.embeddings(ids)
    wanted = torch.tensor([value(first_caption(sample)) for sample in ids])
    assert got["prompt_embeds"].dtype == torch.float16
    assert torch.equal(got["prompt_embeds"], wanted.half().view(-1, 1, 1).expand(-1, 3, 2))
    assert torch.equal(got["prompt_attention_mask"], wanted.long().view(-1, 1).expand(-1, 3))


def test_equal_captions_are_stored_once(tmp_path: Path) -> None:
    encoder = build(tmp_path)
    cache = PromptCache(tmp_path)
    assert (len(cache), cache.num_prompts) == (41, 8)
    assert encoder.asked == [(0, 3), (3, 3), (6, 2)]


def test_blank_captions_and_no_captions_at_all_leave_the_empty_prompt(tmp_path: Path) -> None:
    build(tmp_path, {"a": [" \t"], NULL: []})
    assert torch.equal(*PromptCache(tmp_path).embeddings(["a", NULL])["prompt_embeds"])
    build(tmp_path, {})
    cache = PromptCache(tmp_path)
    assert (len(cache), cache.num_prompts) == (0, 1)
    assert cache.embeddings([NULL])["prompt_embeds"].unique().item() == -1
    with pytest.raises(DataError, match="'a'"):
        cache.embeddings(["a"])


SEVERAL = {
    "three": ("caption 1", "caption 2", "caption 3"),
    "none": (),
    "one": ("caption 2",),
    "blank": ("caption 4", "  "),
}


def test_several_captions_a_sample_are_stored_and_chosen_from(tmp_path: Path) -> None:
    build(tmp_path, SEVERAL)
    cache = PromptCache(tmp_path)
    assert (len(cache), cache.num_prompts, cache.has_several) == (4, 5, True)

    def drawn(choice: list[float] | None) -> list[float]:
        ids = ["three", "three", "three", "none", "one", "blank", NULL]
        chosen = None if choice is None else torch.tensor(choice)
        return cache.embeddings(ids, chosen)["prompt_embeds"][:, 0, 0].tolist()

    assert drawn(None) == [1, 1, 1, -1, 2, 4, -1]
    assert drawn([0.0, 0.34, 0.99999994, 0.9, 0.9, 0.9, 0.9]) == [1, 2, 3, -1, 2, 4, -1]
    assert torch.equal(
        pickle.loads(pickle.dumps(cache)).embeddings(["three"], torch.tensor([0.9]))["prompt_embeds"],
        cache.embeddings(["three"], torch.tensor([0.9]))["prompt_embeds"],
    )


def test_a_cache_with_one_caption_a_sample_is_of_the_first_format(tmp_path: Path) -> None:
    for captions, version, names in ((CAPTIONS, 1, {"ids", "rows"}), (SEVERAL, 2, {"ids", "rows", "counts"})):
        build(tmp_path, captions)
        assert json.loads((tmp_path / "manifest.json").read_text())["format_version"] == version
        assert load_file(tmp_path / "ids.safetensors").keys() == names


def test_how_captions_are_shared_out_is_part_of_the_fingerprint() -> None:
    sets: list[dict[str, tuple[str, ...]]] = [
        {"a": ("x", "y"), "b": ("z",)},
        {"a": ("x",), "b": ("y", "z")},
        {"a": ("y", "x"), "b": ("z",)},
        {"a": ("x",), "b": ("z",)},
    ]
    assert len({PromptSet.of(captions).fingerprint for captions in sets}) == 4


def test_unknown_id_is_named(cache: PromptCache) -> None:
    with pytest.raises(DataError, match=rf"41 samples, but not 'photo-40' \(2 of 3 asked.*{REMEDY}"):
        cache.embeddings(["photo-1", "photo-40", "no"])


def test_file_names_that_are_no_text_are_ids_all_the_same(tmp_path: Path) -> None:
    one, two = os.fsdecode(b"caf\xe9.jpg"), os.fsdecode(b"caf\xea.jpg")
    build(tmp_path, {one: ["caption 4"], two: ["caption 5"]})
    rows = PromptCache(tmp_path).embeddings([two, one])["prompt_embeds"]
    assert rows[:, 0, 0].tolist() == [5, 4]


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ({"a": [3]}, "sample 'a' is not text: got int '3'"),
        ({"a": [None]}, "sample 'a' is not text: got NoneType"),
        ({"a": ["caption \udce9"]}, "sample 'a' is not Unicode text"),
        ({NULL: ["a cube"]}, "'a cube' has the empty string as its id"),
        ({"a": "a cube"}, "sample 'a' has the string 'a cube'. Give a list"),
    ],
)
def test_bad_captions_are_refused(captions: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        PromptSet.of(captions)


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"encoders": "bbb222"}, "encoders of the cache aaa111, of the recipe bbb222"),
        ({"encoders": "aaa111", "max_length": 256}, "max_length of the cache 77, of the recipe 256"),
        ({"dtype": "float32"}, "dtype of the cache float16, of the recipe float32"),
    ],
)
def test_cache_of_others_is_refused_with_both_values(cache: PromptCache, expected: Any, message: str) -> None:
    cache.require(encoders="aaa111", max_length=77, dtype="float16")
    with pytest.raises(DataError, match=f"{message}.*{REMEDY}"):
        cache.require(**expected)


def test_fingerprint_follows_ids_and_captions_but_not_their_order() -> None:
    before = PromptSet.of(CAPTIONS).fingerprint
    assert PromptSet.of(dict(reversed(CAPTIONS.items()))).fingerprint == before
    assert PromptSet.of(CAPTIONS | {"bare": ["caption 1"]}).fingerprint != before
    assert PromptSet.of(CAPTIONS | {"new": []}).fingerprint != before
    swapped = CAPTIONS | {"photo-0": CAPTIONS["photo-1"], "photo-1": CAPTIONS["photo-0"]}
    assert PromptSet.of(swapped).fingerprint != before


def test_stored_hashes_are_those_of_earlier_versions() -> None:
    prompts = PromptSet.of({"a": ["a cube"], "b": [""], "c": ["a cube"], os.fsdecode(b"caf\xe9"): ["x"]})
    assert prompts.fingerprint == "b91d9c87324ce3ea48f1a703366aad14"
    assert prompts.digests[1].tobytes().hex() == "03afc274f4ad0de43f43d703150bc873"
    assert prompts.ids[0].tobytes().hex() == "27c35e6e9373877f29e562464e46497e"


def test_only_missing_and_cut_shards_are_encoded_again(tmp_path: Path) -> None:
    build(tmp_path)
    (tmp_path / "prompts-00000003.safetensors").unlink()
    cut = tmp_path / "prompts-00000006.safetensors"
    cut.write_bytes(cut.read_bytes()[:-4])
    assert not is_complete(tmp_path)
    assert build(tmp_path).asked == [(3, 3), (6, 2)]
    assert is_complete(tmp_path)


def test_another_key_encodes_everything_again_and_removes_what_is_left_over(tmp_path: Path) -> None:
    build(tmp_path)
    assert build(tmp_path, encoders="bbb222").asked == [(0, 3), (3, 3), (6, 2)]
    assert build(tmp_path, {"a": ["caption 1"]}, encoders="bbb222").asked == [(0, 2)]
    assert [path.name for path in tmp_path.glob("prompts-*")] == ["prompts-00000000.safetensors"]


def test_other_captions_in_as_many_shards_are_encoded_where_they_differ(tmp_path: Path) -> None:
    captions = {str(number): [f"caption {number}"] for number in range(7)}
    build(tmp_path, captions)
    assert build(tmp_path, captions | {"3": ["caption 9"]}).asked == [(3, 3)]
    rows = PromptCache(tmp_path).embeddings(list(captions))["prompt_embeds"]
    assert rows[:, 0, 0].tolist() == [0, 1, 2, 9, 4, 5, 6]


def test_a_stopped_writing_is_no_cache_and_goes_on(tmp_path: Path) -> None:
    prompts = PromptSet.of(CAPTIONS)

    def stop(first: int, count: int) -> Mapping[str, Tensor]:
        if first == 6:
            raise KeyboardInterrupt
        return Encoder(prompts)(first, count)

    with pytest.raises(KeyboardInterrupt):
        write_prompts(tmp_path, manifest(prompts), prompts, 3, stop)
    with pytest.raises(DataError, match=f"no complete prompt cache.*{REMEDY}"):
        PromptCache(tmp_path)
    assert build(tmp_path).asked == [(6, 2)]


@pytest.mark.parametrize("name", ["ids.safetensors", "prompts-00000003.safetensors"])
def test_missing_and_cut_files_are_named(tmp_path: Path, name: str) -> None:
    build(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=f"cut off.*{name}.*{REMEDY}|{name}.*cut off.*{REMEDY}"):
        PromptCache(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f"{name}.*{REMEDY}"):
        PromptCache(tmp_path)


def build_together(folder: Path, count: int) -> list[list[tuple[int, int]]]:
    """What each of several processes is asked to encode, each in a thread."""
    prompts, barrier = PromptSet.of(CAPTIONS), threading.Barrier(count, timeout=20)
    encoders = [Encoder(prompts) for _ in range(count)]

    def process(number: int) -> None:
        part = Part(number, count, barrier.wait)
        write_prompts(folder, manifest(prompts), prompts, 3, encoders[number], part)

    threads = [threading.Thread(target=process, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [encoder.asked for encoder in encoders]


def test_several_processes_write_the_bytes_of_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    build(one)
    assert build_together(two, 2) == [[(0, 3), (6, 2)], [(3, 3)]]
    assert {path.name: path.read_bytes() for path in two.iterdir()} == {
        path.name: path.read_bytes() for path in one.iterdir()
    }
    (two / "prompts-00000003.safetensors").unlink()
    (two / "prompts-00000004.safetensors").write_bytes(b"of another shard size")
    assert build_together(two, 2) == [[], [(3, 3)]]
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    assert build_together(two, 5) == [[]] * 5


def test_index_and_manifest_come_when_every_process_is_done(tmp_path: Path) -> None:
    prompts, seen = PromptSet.of(CAPTIONS), list[list[str]]()
    for process in (1, 0):
        part = Part(process, 2, lambda: seen.append(sorted(path.name for path in tmp_path.glob("[!p]*"))))
        write_prompts(tmp_path, manifest(prompts), prompts, 3, Encoder(prompts), part)
    assert seen == [[], [], [], ["ids.safetensors", "manifest.json"]]
    assert is_complete(tmp_path)


def test_ids_are_required_without_reading_an_embedding(cache: PromptCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(_cache: PromptCache, _number: int) -> None:
        raise AssertionError("an embedding was read")

    monkeypatch.setattr(PromptCache, "_shard", read)
    cache.require_ids([*CAPTIONS, NULL])
    cache.require_ids([])
    with pytest.raises(DataError, match=rf"41 samples, but not 'photo-40' \(2 of 3 asked.*{REMEDY}"):
        cache.require_ids(["photo-1", "photo-40", "no"])


def test_another_format_is_refused(tmp_path: Path) -> None:
    build(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    with pytest.raises(DataError, match=f"format 99; this davae reads 1 and 2.*{REMEDY}"):
        PromptCache(tmp_path)


def test_manifest_comes_back_as_it_was_written(cache: PromptCache) -> None:
    expected = manifest(PromptSet.of(CAPTIONS), shards=cache.manifest.shards)
    assert dataclasses.asdict(cache.manifest) == dataclasses.asdict(expected)
    assert cache.manifest.shards[1] == ("prompts-00000003.safetensors", 3)


class Embedded(Dataset):
    def __init__(self, cache: PromptCache) -> None:
        self.cache, self.ids = cache, list(CAPTIONS)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitems__(self, indices: list[int]) -> tuple[list[int], Tensor]:
        return indices, self.cache.embeddings([self.ids[index] for index in indices])["prompt_embeds"]


def test_forked_workers_read_beside_a_parent_that_has_the_files_open(cache: PromptCache) -> None:
    ids, wanted = list(CAPTIONS), [value(first_caption(sample)) for sample in CAPTIONS]
    first = cache.embeddings(ids)["prompt_embeds"]
    settings = {"num_workers": 2, "multiprocessing_context": "fork", "collate_fn": lambda batch: batch}
    seen = []
    for indices, got in DataLoader(Embedded(cache), batch_size=8, shuffle=True, **settings):
        assert got[:, 0, 0].tolist() == [wanted[index] for index in indices]
        assert torch.equal(cache.embeddings(ids)["prompt_embeds"], first)
        seen += indices
    assert sorted(seen) == list(range(len(ids)))


def test_pickled_for_spawned_workers_without_its_files(cache: PromptCache) -> None:
    cache.embeddings(["photo-1"])
    other = pickle.loads(pickle.dumps(cache))
    assert len(pickle.dumps(cache)) < 1000
    assert torch.equal(other.embeddings(["photo-1"])["prompt_embeds"], cache.embeddings(["photo-1"])["prompt_embeds"])


def test_a_reader_holds_24_bytes_a_sample(tmp_path: Path) -> None:
    captions = {f"sample {number}": [f"caption {number % 3}"] for number in range(5000)}
    build(tmp_path, captions)
    cache = PromptCache(tmp_path)
    held = {name: thing for name, thing in vars(cache).items() if isinstance(thing, np.ndarray)}
    assert sum(array.nbytes for array in held.values()) == 24 * 5001
    assert len(pickle.dumps({name: thing for name, thing in vars(cache).items() if name not in held})) < 2000
    assert cache.embeddings([f"sample {number}" for number in range(5000)])["prompt_embeds"][:, 0, 0].tolist() == [
        number % 3 for number in range(5000)
    ]
