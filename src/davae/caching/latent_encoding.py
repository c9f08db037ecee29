"""Images through an autoencoder, plain or upgraded, into a latent cache."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from davae.caching.settings import CacheConfig
from davae.core.finite import bad_rows
from davae.core.observer import Observer
from davae.core.pixels import uint8_to_signed
from davae.core.precision import DTYPES, autocast
from davae.data.buckets import Size, assign
from davae.data.cache_files import WHOLE, Part, shard_ranges
from davae.data.errors import DataError
from davae.data.hold_out import Subset
from davae.data.image_source import ImageSource
from davae.data.latent_cache import CacheManifest, Moments, write_cache
from davae.models.adapter import AutoencoderAdapter, adapt
from davae.models.identity import weights_hash


def encode_images(
    autoencoder: Any,
    source: ImageSource,
    size: int,
    folder: Path,
    config: CacheConfig,
    device: torch.device,
    observer: Observer,
    buckets: Sequence[Size] | None = None,
    part: Part = WHOLE,
) -> None:
    """Write the latent cache of a source. Whole shards that fit are kept, so that a stopped run goes on.

    Several processes share the work when all of them call this, see `davae.data.latent_cache.write_cache`.

    Args:
        autoencoder: of diffusers or davae, plain or upgraded.
        source: of the images.
        size: side of the squares that images are cropped to.
        folder: of the cache.
        config: how to store.
        device: to encode on.
        observer: is told of the progress, which is that of this process's own shards.
        buckets: sizes to bring images to instead of squares, each image to the nearest one that it fills.
        part: the shards that this process encodes.

    Raises:
        DataError: no image fills any of the buckets.
    """
    autoencoder.to(device).eval()
    adapter = adapt(autoencoder)
    order = _Order.of_squares(source, size) if buckets is None else _Order.of_buckets(source, size, buckets)
    ordered, size_of = order.images(source), order.size_of
    if order.too_small:
        name, reason = order.too_small[0]
        observer.say(f"{len(order.too_small)} images fill no bucket and are left out, for example {name}: {reason}")
    ranges = list(_ranges(map(len, order.members), config.shard_size))
    total, before = part.progress(ranges)
    observer.begin("latents", total)

    def shard(first: int, count: int) -> Moments:
        batches = []
        for start in range(first, first + count, config.batch_size):
            stop = min(start + config.batch_size, first + count)
            images = ordered.images(range(start, stop), size_of[first])
            batches.append(_moments(adapter, images, config, device))
            _require_finite(batches[-1], ordered.ids[start:stop], config)
            observer.advance(before[first] + stop - first)
        return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}

    manifest = _manifest(adapter, source, ordered, order, size, config)
    write_cache(folder, manifest, ((first, count, partial(shard, first, count)) for first, count in ranges), part)
    observer.end()


@dataclass(frozen=True)
class _Order:
    """The order in which the images of a source are stored: size by size.

    Args:
        sizes: height and width of each bucket.
        members: images of each by their number in the source.
        too_small: (name, reason) of those that are left out, because they would have to be enlarged for any.
    """

    sizes: Sequence[Size]
    members: Sequence[Sequence[int]]
    too_small: Sequence[tuple[str, str]] = ()

    @classmethod
    def of_squares(cls, source: ImageSource, size: int) -> "_Order":
        """All images as squares, in their own order."""
        return cls([(size, size)], [range(len(source))])

    @classmethod
    def of_buckets(cls, source: ImageSource, size: int, buckets: Sequence[Size]) -> "_Order":
        """Each image in the nearest bucket that it fills."""
        shown = [(size, size)] * len(source) if source.sizes is None else source.sizes
        members: list[list[int]] = [[] for _ in buckets]
        too_small: list[tuple[str, str]] = []
        for index, bucket in enumerate(assign(shown, buckets)):
            if bucket is None:
                height, width = shown[index]
                reason = f"too small: {width}x{height}, it fills no bucket of about {size}x{size} pixels"
                too_small.append((source.ids[index], reason))
            else:
                members[bucket].append(index)
        if not any(members):
            allowed = ", ".join(f"{width}x{height}" for height, width in buckets)
            raise DataError(
                f"No image fills a bucket: got {len(source)} images, for example {too_small[0][0]} "
                f"({too_small[0][1]}); allowed are images of at least one of {allowed}. Lower image_size or take "
                f"larger images."
            )
        return cls(buckets, members, too_small)

    @property
    def size_of(self) -> list[Size]:
        """Height and width of each stored image."""
        return [size for size, group in zip(self.sizes, self.members, strict=True) for _ in group]

    def images(self, source: ImageSource) -> Subset:
        """The images in this order."""
        return Subset(source, [index for group in self.members for index in group])


def _manifest(
    adapter: AutoencoderAdapter, source: ImageSource, ordered: Subset, order: _Order, size: int, config: CacheConfig
) -> CacheManifest:
    scaling = adapter.raw_scaling
    return CacheManifest(
        layout=adapter.layout,
        autoencoder=weights_hash(adapter.model),
        source=source.fingerprint,
        size=size,
        flips=config.flips,
        dtype=config.dtype,
        precision=config.precision,
        shift=scaling.shift,
        scale=scaling.scale,
        patch=scaling.patch,
        ids=tuple(ordered.ids),
        skipped=(*source.skipped, *order.too_small),
        buckets=tuple((*bucket, len(group)) for bucket, group in zip(order.sizes, order.members, strict=True)),
    )


def _ranges(counts: Iterable[int], shard_size: int) -> Iterator[tuple[int, int]]:
    """(first, count) of shards in storage order, none across two buckets."""
    start = 0
    for total in counts:
        for first, count in shard_ranges(total, shard_size):
            yield start + first, count
        start += total


def _require_finite(moments: Moments, ids: Sequence[str], config: CacheConfig) -> None:
    if rows := bad_rows(moments):
        raise FloatingPointError(
            f"Encoding images failed: what the autoencoder says of {ids[rows[0]]} is not finite in {config.dtype} "
            f"({len(rows)} of {len(ids)} in its batch). Set cache.dtype to bfloat16 or float32, and cache.precision "
            f"to fp32; if that does not help, the autoencoder is at fault."
        )


@torch.no_grad()
def _moments(adapter: AutoencoderAdapter, images: Tensor, config: CacheConfig, device: torch.device) -> Moments:
    """What a shard holds of uint8 images [N, 3, height, width]."""
    result: Moments = {}
    views = {"": images, "_flip": images.flip(-1)} if config.flips else {"": images}
    for suffix, view in views.items():
        with autocast(device, config.precision):
            mean, logvar = adapter.moments(uint8_to_signed(view).to(device))
        result[f"mean{suffix}"] = mean.to(DTYPES[config.dtype]).cpu()
        if logvar.shape[1]:
            result[f"logvar{suffix}"] = logvar.to(DTYPES[config.dtype]).cpu()
    return result
