"""Images into a latent cache: every latent is what the autoencoder says of its image, in squares or in buckets."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from conftest import assert_close
from davae.caching.latent_encoding import encode_images
from davae.caching.settings import CacheConfig
from davae.core.observer import Silent
from davae.data.buckets import bucket_sizes
from davae.data.cache_files import Part
from davae.data.errors import DataError
from davae.data.folder import FolderSource
from davae.data.hold_out import Subset
from davae.data.latent_cache import LatentCache
from davae.data.solids import SolidsSource
from davae.models.adapter import adapt
from davae.models.declared_scaling import scaling_of
from davae.train.order import BucketOrder
from models.families import CHANNELS, calibrated, flux2, sd3

BUCKETS = bucket_sizes(32, 8)  # ((24, 48), (24, 40), (32, 32), (40, 24), (48, 24))
SHOWN = {  # name: (width, height), where it belongs
    "a-wide.png": ((60, 30), (24, 48)),
    "b-square.png": ((40, 40), (32, 32)),
    "c-tall.png": ((30, 61), (48, 24)),
    "d-turned.jpg": ((26, 44), (40, 24)),  # lies in the file as 44x26
    "e-square.png": ((33, 35), (32, 32)),
    "f-short.png": ((46, 26), (24, 40)),  # would be the widest one if it were two pixels wider
    "g-small.png": ((31, 31), None),
    "h-wide.png": ((90, 40), (24, 48)),
}
CONFIG = CacheConfig(dtype="float32", batch_size=2, shard_size=2)


@pytest.fixture
def photos(tmp_path: Path) -> FolderSource:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed, (name, (size, _)) in enumerate(SHOWN.items()):
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        image, exif = Image.fromarray(pixels), Image.Exif()
        if name == "d-turned.jpg":
            image, exif[0x0112] = image.transpose(Image.Transpose.ROTATE_90), 6
        image.save(folder / name, exif=exif)
        (folder / name).with_suffix(".txt").write_text(f"caption of {name}")
    return FolderSource(folder, 24)


def encode(autoencoder: Any, source: Any, folder: Path, config: CacheConfig = CONFIG, **kind: Any) -> LatentCache:
    encode_images(autoencoder, source, 32, folder, config, torch.device("cpu"), Silent(), **kind)
    return LatentCache(folder)


def unit(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


@torch.no_grad()
def test_every_image_is_in_the_bucket_of_its_shown_shape(photos: FolderSource, tmp_path: Path) -> None:
    model = calibrated(sd3(), scale=2)
    cache = encode(model, photos, tmp_path / "latents", buckets=BUCKETS)
    manifest = cache.manifest
    assert [(height, width) for height, width, _ in manifest.buckets] == list(BUCKETS)
    assert [count for *_, count in manifest.buckets] == [2, 1, 2, 1, 1]
    assert manifest.skipped == (("g-small.png", "too small: 31x31, it fills no bucket of about 32x32 pixels"),)
    assert set(manifest.ids) == SHOWN.keys() - {"g-small.png"}
    for name, (_, bucket) in SHOWN.items():
        if bucket is None:
            continue
        position = manifest.ids.index(name)
        mean, logvar = cache.moments([position])
        assert mean.shape[-2:] == (bucket[0] // 8, bucket[1] // 8)
        image = photos.images([photos.ids.index(name)], bucket)
        want, want_logvar = adapt(model).moments(unit(image))
        assert_close(mean, want)
        assert_close(logvar, want_logvar)
        assert_close(cache.moments([position], [True])[0], adapt(model).moments(unit(image.flip(-1)))[0])
    # A training on it: whole steps of one size.
    order = BucketOrder([count for *_, count in manifest.buckets], seed=0, batch_size=4)
    assert {cache.moments(order.indices(range(4 * k, 4 * k + 4)))[0].shape[0] for k in range(12)} == {4}


def test_a_stopped_bucketed_cache_goes_on_with_whole_shards_kept(photos: FolderSource, tmp_path: Path) -> None:
    model = sd3()
    whole = encode(model, photos, tmp_path / "whole", buckets=BUCKETS)
    shards = whole.manifest.shards
    assert [count for _, count in shards] == [2, 1, 2, 1, 1]  # of one size each, though two would fit into a shard

    class Stops(Subset):
        asked: list[tuple[int, int]]

        def images(self, indices: Any, size: Any) -> Tensor:
            if len(self.asked) == stop:
                raise KeyboardInterrupt
            self.asked.append(size)
            return super().images(indices, size)

    source, stop = Stops(photos, range(len(photos))), 3
    source.asked = []
    with pytest.raises(KeyboardInterrupt):
        encode(model, source, tmp_path / "latents", buckets=BUCKETS)
    with pytest.raises(DataError, match="no complete latent cache"):
        LatentCache(tmp_path / "latents")
    assert source.asked == [(24, 48), (24, 40), (32, 32)]
    source.asked, stop = [], 99
    cache = encode(model, source, tmp_path / "latents", buckets=BUCKETS)
    assert source.asked == [(40, 24), (48, 24)]
    assert cache.manifest == whole.manifest
    for name, _ in shards:
        assert (tmp_path / "latents" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    encode(model, source, tmp_path / "latents", buckets=BUCKETS[1:])
    assert len(source.asked) > 2, "shards of other buckets were kept"


def test_shards_of_the_same_images_in_another_order_are_not_kept(photos: FolderSource, tmp_path: Path) -> None:
    model = calibrated(sd3())
    encode(model, photos, tmp_path / "latents", buckets=BUCKETS)
    (tmp_path / "latents" / "manifest.json").unlink()  # as where it was interrupted
    turned = Subset(photos, range(len(photos))[::-1])
    assert turned.fingerprint == photos.fingerprint
    again = encode(model, turned, tmp_path / "latents", buckets=BUCKETS)
    whole = encode(model, turned, tmp_path / "whole", buckets=BUCKETS)
    assert again.manifest == whole.manifest
    for name, _ in whole.manifest.shards:
        assert (tmp_path / "latents" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@torch.no_grad()
def test_without_buckets_images_are_squares_in_their_own_order(photos: FolderSource, tmp_path: Path) -> None:
    large = Subset(photos, [1, 4, 7, 1])
    large.ids = ["0", "1", "2", "3"]
    model = sd3()
    for buckets in (None, ((32, 32),)):
        cache = encode(model, large, tmp_path / "latents", buckets=buckets)
        assert (cache.manifest.ids, cache.manifest.buckets) == (tuple(large.ids), ((32, 32, 4),))
        assert_close(cache.moments(range(4))[0], adapt(model).moments(unit(large.images(range(4), 32)))[0])


class Bar(Silent):
    """Remembers what it was shown."""

    def __init__(self) -> None:
        self.shown: list[int] = []

    def begin(self, stage: str, total: int, done: int = 0) -> None:
        self.shown = [total]

    def advance(self, done: int, values: Any = None) -> None:
        self.shown.append(done)


def test_two_processes_encode_the_bytes_of_one_and_count_their_own(photos: FolderSource, tmp_path: Path) -> None:
    model, bars, waits = sd3(), [Bar(), Bar()], list[int]()
    whole = encode(model, photos, tmp_path / "one", buckets=BUCKETS)
    assert [count for _, count in whole.manifest.shards] == [2, 1, 2, 1, 1]
    for process in (1, 0):
        part = Part(process, 2, lambda process=process: waits.append(process))
        settings = (32, tmp_path / "two", CONFIG, torch.device("cpu"), bars[process], BUCKETS, part)
        encode_images(model, photos, *settings)
    assert (bars[0].shown, bars[1].shown) == ([5, 2, 4, 5], [2, 1, 2])
    assert waits == [1, 1, 0, 0]
    for path in (tmp_path / "one").iterdir():
        assert (tmp_path / "two" / path.name).read_bytes() == path.read_bytes()


def test_rendered_scenes_are_squares_whatever_the_buckets(tmp_path: Path) -> None:
    cache = encode(sd3(), SolidsSource(3), tmp_path / "latents", buckets=BUCKETS)
    assert [count for *_, count in cache.manifest.buckets] == [0, 0, 3, 0, 0]


def test_images_that_fill_no_bucket_at_all_are_refused(photos: FolderSource, tmp_path: Path) -> None:
    small = Subset(photos, [photos.ids.index("g-small.png")])
    with pytest.raises(
        DataError, match=r"No image fills a bucket: got 1 images.*g-small.png .*allowed.*48x24, 40x24"
    ):
        encode(sd3(), small, tmp_path / "latents", buckets=BUCKETS)


@torch.no_grad()
def test_latents_of_a_packed_batch_norm_are_normalised_as_by_the_model(tmp_path: Path) -> None:
    """FLUX.2: statistics of each of the four phases of a channel come out of the cache as they went in."""
    source = SolidsSource(4)
    for base in (flux2(), calibrated(flux2(), scale=2, detail_channels=6)):
        cache = encode(base, source, tmp_path / type(base).__name__)
        assert cache.manifest.scaling == adapt(base).raw_scaling
        assert cache.manifest.patch == 2
        posterior = base.encode(unit(source.images(range(4), 32))).latent_dist
        seen = cache.normalise(cache.moments(range(4))[0])
        want = scaling_of(base).normalise(posterior.mode())
        assert_close(seen[:, :CHANNELS], want[:, :CHANNELS])
        assert_close(seen, want)
