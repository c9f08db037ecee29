"""The latent cache: what is written is read back by sample id, and what does not fit is refused with a remedy."""

import dataclasses
import itertools
import json
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from davae.core.layout import LatentLayout
from davae.core.scaling import LatentScaling
from davae.data.cache_files import Part, shard_ranges
from davae.data.errors import DataError
from davae.data.latent_cache import CacheManifest, LatentCache, Moments, write_cache

COUNT, BASE, DETAIL, SIDE = 10, 2, 3, 4
REMEDY = "davae cache RECIPE"


def manifest(**changes: Any) -> CacheManifest:
    values: dict[str, Any] = {
        "layout": LatentLayout(BASE, DETAIL),
        "autoencoder": "aaa111",
        "source": "photos-1",
        "size": 32,
        "flips": True,
        "dtype": "float16",
        "shift": (0.5,) * BASE + (0.0,) * DETAIL,
        "scale": (2.0,) * BASE + (1.0, 0.5, 0.25),
        "ids": tuple(f"photo-{number}" for number in range(COUNT)),
        "skipped": (("cut.png", "unreadable"),),
    }
    return CacheManifest(**(values | changes))


def moments(first: int, count: int, flips: bool = True, detail: int = DETAIL) -> Moments:
    """Random numbers that are a function of the sample alone."""
    rows: dict[str, list[torch.Tensor]] = {}
    for number in range(first, first + count):
        source = torch.Generator().manual_seed(number)
        for suffix in ("", "_flip") if flips else ("",):
            rows.setdefault(f"mean{suffix}", []).append(torch.randn(BASE + detail, SIDE, SIDE, generator=source))
            if detail:
                rows.setdefault(f"logvar{suffix}", []).append(torch.randn(detail, SIDE, SIDE, generator=source))
    return {name: torch.stack(tensors).half() for name, tensors in rows.items()}


class Encoder:
    """Counts which shards are asked for; stops before the shard that starts at `dies_at`."""

    def __init__(self, shard_size: int = 4, dies_at: int = -1, **kind: Any) -> None:
        self.shard_size, self.dies_at, self.kind, self.encoded = shard_size, dies_at, kind, []

    def shards(self) -> list[tuple[int, int, Any]]:
        return [
            (first, count, lambda first=first, count=count: self._encode(first, count))
            for first, count in shard_ranges(COUNT, self.shard_size)
        ]

    def _encode(self, first: int, count: int) -> Moments:
        if first == self.dies_at:
            raise KeyboardInterrupt
        self.encoded.append(first)
        return moments(first, count, **self.kind)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_cache(tmp_path / "latents", manifest(), Encoder().shards())


def contents(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_samples_are_read_back_by_id(folder: Path) -> None:
    cache, want = LatentCache(folder), moments(0, COUNT)
    assert len(cache) == COUNT
    for name in ("photo-9", "photo-0", "photo-4"):  # in three shards, one of them shorter
        number = int(name.removeprefix("photo-"))
        mean, logvar = cache.moments([cache.manifest.ids.index(name)])
        assert torch.equal(mean[0], want["mean"][number].float())
        assert torch.equal(logvar[0], want["logvar"][number].float())


def test_a_batch_comes_in_the_order_that_was_asked_for(folder: Path) -> None:
    order = [9, 3, 4, 3, 0]
    mean, logvar = LatentCache(folder).moments(order)
    assert mean.dtype == logvar.dtype == torch.float32
    assert torch.equal(mean, moments(0, COUNT)["mean"].float()[order])
    assert torch.equal(logvar, moments(0, COUNT)["logvar"].float()[order])


def test_mirrored_samples_are_mixed_in_where_asked(folder: Path) -> None:
    mean, logvar = LatentCache(folder).moments([1, 1, 8], [False, True, True])
    want = moments(0, COUNT)
    assert torch.equal(mean, torch.stack([want["mean"][1], want["mean_flip"][1], want["mean_flip"][8]]).float())
    assert torch.equal(logvar[1:], want["logvar_flip"][[1, 8]].float())


def test_a_cache_without_mirrored_samples_says_so(tmp_path: Path) -> None:
    folder = write_cache(tmp_path, manifest(flips=False), Encoder(flips=False).shards())
    cache = LatentCache(folder)
    assert torch.equal(cache.moments([5], [False])[0], cache.moments([5])[0])
    with pytest.raises(DataError, match=r"no mirrored samples; re-run with cache\.flips"):
        cache.moments([5, 6], [False, True])


def test_the_latents_of_a_plain_autoencoder_have_no_variance(tmp_path: Path) -> None:
    plain = manifest(layout=LatentLayout(BASE, 0), shift=(0.5,) * BASE, scale=(2.0,) * BASE)
    cache = LatentCache(write_cache(tmp_path, plain, Encoder(detail=0).shards()))
    mean, logvar = cache.moments([7, 2], [True, False])
    assert (mean.shape, logvar.shape) == ((2, BASE, SIDE, SIDE), (2, 0, SIDE, SIDE))


def test_normalising_uses_the_stored_statistics(folder: Path) -> None:
    raw = torch.full((1, BASE + DETAIL, 1, 1), 3.0)
    assert LatentCache(folder).normalise(raw).flatten().tolist() == [5.0, 5.0, 3.0, 1.5, 0.75]


def test_normalising_with_statistics_of_each_phase(tmp_path: Path) -> None:
    scaling = LatentScaling(tuple(0.25 * k for k in range(20)), tuple(1 + 0.5 * k for k in range(20)), patch=2)
    packed = manifest(**dataclasses.asdict(scaling))
    cache = LatentCache(write_cache(tmp_path, packed, Encoder().shards()))
    assert cache.manifest.scaling == scaling
    raw = cache.moments([3, 8])[0]
    seen = cache.normalise(raw)
    assert torch.equal(seen, scaling.normalise(raw))
    for channel, dy, dx in itertools.product(range(BASE + DETAIL), (0, 1), (0, 1)):
        k = 4 * channel + 2 * dy + dx
        torch.testing.assert_close(
            seen[:, channel, dy::2, dx::2], (raw[:, channel, dy::2, dx::2] - 0.25 * k) * (1 + 0.5 * k)
        )
    assert (scaling.denormalise(seen) - raw).abs().max() < 1e-5


SHAPES = {(32, 32): (4, 4), (16, 64): (2, 8), (64, 16): (8, 2)}  # pixels: latent


@pytest.fixture
def bucketed(tmp_path: Path) -> LatentCache:
    """Five squares, no wide and five tall samples; the value of a sample is its number."""
    buckets = ((32, 32, 5), (16, 64, 0), (64, 16, 5))
    values = torch.arange(10).view(-1, 1, 1, 1).half()

    def rows(first: int, count: int) -> Moments:
        shape = SHAPES[(32, 32)] if first < 5 else SHAPES[(64, 16)]
        mean = values[first : first + count].expand(-1, BASE + DETAIL, *shape)
        return {"mean": mean, "logvar": mean[:, BASE:]}

    shards = [
        (first, count, lambda f=first, c=count: rows(f, c)) for first, count in ((0, 3), (3, 2), (5, 3), (8, 2))
    ]
    return LatentCache(write_cache(tmp_path / "bucketed", manifest(flips=False, buckets=buckets), shards))


def test_samples_of_one_bucket_stack(bucketed: LatentCache) -> None:
    assert bucketed.manifest.buckets == ((32, 32, 5), (16, 64, 0), (64, 16, 5))
    for indices, shape in (([4, 0, 3], (4, 4)), ([9, 5, 7, 8], (8, 2))):
        mean, logvar = bucketed.moments(indices)
        assert mean.shape == (len(indices), BASE + DETAIL, *shape)
        assert logvar.shape == (len(indices), DETAIL, *shape)
        assert mean[:, 0, 0, 0].tolist() == logvar[:, 0, 0, 0].tolist() == indices


def test_samples_of_several_sizes_are_refused(bucketed: LatentCache) -> None:
    with pytest.raises(DataError, match=r"several sizes do not stack; got samples of images of 32x32, 64x16 \("):
        bucketed.moments([4, 5])
    bucketed.require(buckets=tuple(SHAPES))
    with pytest.raises(DataError, match=r"buckets of the cache \(\(32, 32\), .*, of the recipe \(\(32, 32\),\)"):
        bucketed.require(buckets=((32, 32),))


@pytest.mark.parametrize("index", [-1, COUNT])
def test_a_sample_that_is_not_there_is_refused(folder: Path, index: int) -> None:
    with pytest.raises(IndexError, match="samples 0 to 9"):
        LatentCache(folder).moments([0, index])


def test_the_manifest_survives_the_disk(folder: Path) -> None:
    expected = manifest(shards=tuple((f"latents-{first:08d}.safetensors", min(4, 10 - first)) for first in (0, 4, 8)))
    assert LatentCache(folder).manifest == expected
    assert contents(folder) == [*(name for name, _ in expected.shards), "manifest.json"]


def test_interrupted_writing_goes_on_with_whole_shards_kept(tmp_path: Path) -> None:
    stopped = Encoder(dies_at=8)
    with pytest.raises(KeyboardInterrupt):
        write_cache(tmp_path, manifest(), stopped.shards())
    assert stopped.encoded == [0, 4]
    with pytest.raises(DataError, match=f"no complete latent cache.*{REMEDY}"):
        LatentCache(tmp_path)
    resumed = Encoder()
    write_cache(tmp_path, manifest(), resumed.shards())
    assert resumed.encoded == [8]
    assert torch.equal(LatentCache(tmp_path).moments(range(COUNT))[0], moments(0, COUNT)["mean"].float())


def write_together(folder: Path, encoders: list[Encoder]) -> None:
    """What several processes do, each in a thread."""
    barrier = threading.Barrier(len(encoders), timeout=20)
    complete = []

    def process(number: int) -> None:
        part = Part(number, len(encoders), barrier.wait)
        write_cache(folder, manifest(), encoders[number].shards(), part)
        complete.append((folder / "manifest.json").exists())

    threads = [threading.Thread(target=process, args=(number,)) for number in range(len(encoders))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert complete == [True] * len(encoders)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("count", "shares"), [(2, [[0, 4, 8], [2, 6]]), (3, [[0, 6], [2, 8], [4]]), (7, None)])
def test_several_processes_write_the_bytes_of_one(tmp_path: Path, count: int, shares: list[list[int]] | None) -> None:
    write_cache(tmp_path / "one", manifest(), Encoder(shard_size=2).shards())
    encoders = [Encoder(shard_size=2) for _ in range(count)]
    write_together(tmp_path / "many", encoders)
    assert bytes_of(tmp_path / "many") == bytes_of(tmp_path / "one")
    if shares is not None:
        assert [encoder.encoded for encoder in encoders] == shares


def test_processes_make_what_one_of_them_lacks_and_remove_what_is_left_over(tmp_path: Path) -> None:
    write_cache(tmp_path / "one", manifest(), Encoder(shard_size=3).shards())
    write_together(tmp_path / "many", [Encoder(shard_size=3), Encoder(shard_size=3)])
    (tmp_path / "many" / "latents-00000003.safetensors").unlink()
    (tmp_path / "many" / "latents-00000005.safetensors").write_bytes(b"of another shard size")
    encoders = [Encoder(shard_size=3), Encoder(shard_size=3)]
    write_together(tmp_path / "many", encoders)
    assert [encoder.encoded for encoder in encoders] == [[], [3]]
    assert bytes_of(tmp_path / "many") == bytes_of(tmp_path / "one")


def test_there_is_no_manifest_before_every_process_is_done(tmp_path: Path) -> None:
    seen: list[tuple[int, bool]] = []

    def waits(process: int) -> Part:
        return Part(process, 2, lambda: seen.append((process, (tmp_path / "manifest.json").exists())))

    write_cache(tmp_path, manifest(), Encoder().shards(), waits(1))
    assert contents(tmp_path) == ["latents-00000004.safetensors"]
    write_cache(tmp_path, manifest(), Encoder().shards(), waits(0))
    assert seen == [(1, False), (1, False), (0, False), (0, True)]
    assert len(LatentCache(tmp_path)) == COUNT


def test_what_killed_processes_left_is_removed_by_those_that_write_it(tmp_path: Path, folder: Path) -> None:
    half = tmp_path / "half"
    half.mkdir()
    ours = [".latents-00000004.safetensors.tmp", ".latents-00000004.safetensors.7.tmp"]
    ours += [".latents-00000004.safetensors.node-1.7.tmp"]
    others = [".latents-00000000.safetensors.tmp", ".latents-00000008.safetensors.node-1.7.tmp"]
    nobodys = [".latents-00000005.safetensors.7.tmp", ".manifest.json.tmp", ".manifest.json.node-1.7.tmp"]
    for name in (*ours, *others, *nobodys):
        (half / name).write_bytes(b"half")
    write_cache(half, manifest(), Encoder().shards(), Part(1, 2))
    assert contents(half) == [*others, "latents-00000004.safetensors"]
    write_cache(half, manifest(), Encoder().shards(), Part(0, 2))
    assert contents(half) == contents(folder)


def test_a_process_that_begins_again_leaves_no_old_manifest(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_cache(folder, manifest(autoencoder="bbb222"), Encoder(dies_at=4).shards(), Part(1, 2))
    with pytest.raises(DataError, match="no complete latent cache"):
        LatentCache(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"autoencoder": "bbb222"},
        {"source": "photos-2"},
        {"size": 64},
        {"dtype": "bfloat16"},
        {"precision": "bf16"},
        {"flips": False},
        {"layout": LatentLayout(BASE + 1, DETAIL - 1)},
        {"buckets": ((32, 32, 8), (16, 64, 2))},
    ],
    ids=lambda change: next(iter(change)),
)
def test_shards_that_something_else_made_are_not_kept(folder: Path, change: dict[str, Any]) -> None:
    again = Encoder()
    write_cache(folder, manifest(**change), again.shards())
    assert again.encoded == [0, 4, 8]


@pytest.mark.parametrize("shard_size", [3, 5, 10])
def test_another_shard_size_replaces_every_shard_that_changed(folder: Path, shard_size: int) -> None:
    again = Encoder(shard_size)
    write_cache(folder, manifest(), again.shards())
    cache = LatentCache(folder)
    assert again.encoded == list(range(0, COUNT, shard_size))
    assert len(contents(folder)) == 1 + len(again.encoded)
    assert torch.equal(cache.moments(range(COUNT))[0], moments(0, COUNT)["mean"].float())


def test_a_cache_of_another_autoencoder_is_refused_with_both_hashes(folder: Path) -> None:
    cache = LatentCache(folder)
    cache.require(autoencoder="aaa111", size=32)
    with pytest.raises(DataError, match=f"autoencoder of the cache aaa111, of the recipe bbb222.*{REMEDY}"):
        cache.require(autoencoder="bbb222", size=32)
    with pytest.raises(DataError, match=f"size of the cache 32, of the recipe 64.*{REMEDY}"):
        cache.require(autoencoder="aaa111", size=64)


@pytest.mark.parametrize("damage", ["truncated", "no header", "missing"])
def test_a_damaged_shard_is_named_and_made_again(folder: Path, damage: str) -> None:
    shard = folder / "latents-00000004.safetensors"
    whole = shard.read_bytes()
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(whole[: len(whole) - 8] if damage == "truncated" else whole[:5])
    with pytest.raises(DataError, match=rf"{shard.name} is missing or cut off.*Re-run '{REMEDY}'"):
        LatentCache(folder)
    again = Encoder()
    write_cache(folder, manifest(), again.shards())
    assert again.encoded == [4]
    assert torch.equal(LatentCache(folder).moments([5])[0], moments(5, 1)["mean"].float())


def test_a_shard_of_another_length_is_refused(folder: Path) -> None:
    shard = folder / "latents-00000004.safetensors"
    save_file({name: tensor[:3].contiguous() for name, tensor in load_file(shard).items()}, shard)
    with pytest.raises(DataError, match=f"{shard.name} holds 3 samples, the manifest says 4"):
        LatentCache(folder)


def test_a_manifest_of_another_version_is_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    future = json.loads(path.read_text()) | {"format_version": 99, "something": "new"}
    path.write_text(json.dumps(future))
    with pytest.raises(DataError, match=f"has format 99; this davae reads 1 and 2.*{REMEDY}"):
        LatentCache(folder)


def test_a_manifest_that_names_other_samples_is_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"ids": stored["ids"][:-1]}))
    with pytest.raises(DataError, match=f"10 stored, 9 named, 10 in buckets.*{REMEDY}"):
        LatentCache(folder)


def test_a_cache_of_format_1_is_read(folder: Path) -> None:
    path, want = folder / "manifest.json", LatentCache(folder)
    stored = {key: value for key, value in json.loads(path.read_text()).items() if key not in ("patch", "buckets")}
    path.write_text(json.dumps(stored | {"format_version": 1}))
    cache = LatentCache(folder)
    assert cache.manifest == dataclasses.replace(want.manifest, format_version=1)
    assert (cache.manifest.buckets, cache.manifest.key) == (((32, 32, COUNT),), want.manifest.key)
    assert torch.equal(cache.moments(range(COUNT))[0], want.moments(range(COUNT))[0])


def test_captions_and_labels_of_earlier_formats_are_passed_over(folder: Path) -> None:
    path, want = folder / "manifest.json", LatentCache(folder)
    of_the_set = {"captions": ["a"] * COUNT, "labels": [0] * COUNT, "class_names": ["ant"]}
    path.write_text(json.dumps(json.loads(path.read_text()) | of_the_set | {"format_version": 2}))
    assert LatentCache(folder).manifest == dataclasses.replace(want.manifest, format_version=2)


def test_statistics_that_format_1_could_not_hold_are_refused(tmp_path: Path) -> None:
    packed = manifest(shift=(0.0,) * 4 * (BASE + DETAIL), scale=(1.0,) * 4 * (BASE + DETAIL), format_version=1)
    folder = write_cache(tmp_path, packed, Encoder().shards())
    with pytest.raises(DataError, match=f"5 channels and statistics of 20.*{REMEDY}"):
        LatentCache(folder)


def test_every_part_of_the_key_is_checked(folder: Path) -> None:
    key = LatentCache(folder).manifest.key
    for name in key:
        with pytest.raises(DataError, match=f"{name} of the cache"):
            LatentCache(folder).require(**{name: "another"})
    changed = dataclasses.replace(manifest(), autoencoder="bbb222").key
    assert {name for name in key if key[name] != changed[name]} == {"autoencoder"}


def test_it_works_in_loader_workers_and_pickles(folder: Path) -> None:
    cache = LatentCache(folder)
    want = cache.moments(range(COUNT))[0]  # the parent's files are open before the fork
    loader = torch.utils.data.DataLoader(
        range(COUNT), batch_size=4, num_workers=1, collate_fn=lambda i: cache.moments(i)[0]
    )
    assert torch.equal(torch.cat(list(loader)), want)
    assert torch.equal(pickle.loads(pickle.dumps(cache)).moments(range(COUNT))[0], want)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")
def test_reading_needs_no_memory_for_the_rest(tmp_path: Path) -> None:
    def private_mb() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

    many = 12_000  # 58 MB
    ids = tuple(map(str, range(many)))
    large = manifest(flips=False, ids=ids)
    block = torch.zeros(many, BASE + DETAIL, 22, 22, dtype=torch.float16)
    folder = write_cache(tmp_path, large, [(0, many, lambda: {"mean": block, "logvar": block[:, BASE:]})])
    before = private_mb()
    cache = LatentCache(folder)
    cache.moments(range(0, many, 1000))
    assert private_mb() - before < 20
