"""The latent cache stage, for structured and plain autoencoders alike."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from davae.data.buckets import Size, assign
from davae.data.cache_files import WHOLE, Part, shard_ranges
from davae.data.latents import CacheManifest, Moments, write_cache
from davae.data.source import DataError, ImageSource
from davae.data.splits import Subset
from davae.models.faces import layout_of, raw_moments, raw_scaling, weights_hash
from davae.recipe import CacheConfig
from davae.train.journal import Observer

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def to_unit(images: Tensor) -> Tensor:
    """uint8 images -> float in [-1, 1], the range autoencoders take."""
    return (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def encode_source(
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

    Several processes share the work when all of them call this, see `davae.data.latents.write_cache`.

    Args:
        autoencoder: structured or plain.
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
    sizes: Sequence[Size] = ((size, size),)
    members, too_small = [list(range(len(source)))], []
    if buckets is not None:
        sizes = buckets
        members, too_small = _members(source, size, buckets)
    ordered = Subset(source, [index for group in members for index in group], "by bucket")
    size_of = [one for one, group in zip(sizes, members, strict=True) for _ in group]
    scaling = raw_scaling(autoencoder)
    manifest = CacheManifest(
        layout=layout_of(autoencoder),
        autoencoder=weights_hash(autoencoder),
        source=source.fingerprint,
        size=size,
        flips=config.flips,
        dtype=config.dtype,
        precision=config.precision,
        shift=scaling.shift,
        scale=scaling.scale,
        patch=scaling.patch,
        class_names=tuple(source.class_names),
        ids=tuple(ordered.ids),
        labels=tuple(ordered.labels),
        captions=tuple(ordered.captions),
        skipped=(*source.skipped, *too_small),
        buckets=tuple((*one, len(group)) for one, group in zip(sizes, members, strict=True)),
    )
    if too_small:
        name, reason = too_small[0]
        observer.say(f"{len(too_small)} images fill no bucket and are left out, for example {name}: {reason}")
    ranges = list(_ranges(map(len, members), config.shard_size))
    total, before = part.progress(ranges)
    observer.begin("latents", total)

    def shard(first: int, count: int) -> Moments:
        parts = []
        for start in range(first, first + count, config.batch_size):
            stop = min(start + config.batch_size, first + count)
            images = ordered.images(range(start, stop), size_of[first])
            parts.append(_moments(autoencoder, images, config, device))
            observer.advance(before[first] + stop - first)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    write_cache(folder, manifest, ((first, count, partial(shard, first, count)) for first, count in ranges), part)
    observer.end()


def _ranges(counts: Iterable[int], shard_size: int) -> Iterator[tuple[int, int]]:
    """(first, count) of shards in storage order, none across two buckets."""
    start = 0
    for total in counts:
        for first, count in shard_ranges(total, shard_size):
            yield start + first, count
        start += total


def _members(
    source: ImageSource, size: int, buckets: Sequence[Size]
) -> tuple[list[list[int]], list[tuple[str, str]]]:
    """Images of each bucket by index, and (name, reason) of those that would have to be enlarged for any."""
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
        raise DataError(
            f"No image fills a bucket: got {len(source)} images, for example {too_small[0][0]} ({too_small[0][1]}); "
            f"allowed are images of at least one of {', '.join(f'{width}x{height}' for height, width in buckets)}. "
            f"Lower image_size or take larger images."
        )
    return members, too_small


@torch.no_grad()
def _moments(autoencoder: Any, images: Tensor, config: CacheConfig, device: torch.device) -> Moments:
    """What a shard holds of uint8 images [N, 3, height, width]."""
    result: Moments = {}
    views = {"": images, "_flip": images.flip(-1)} if config.flips else {"": images}
    for suffix, view in views.items():
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            mean, logvar = raw_moments(autoencoder, to_unit(view).to(device))
        result[f"mean{suffix}"] = mean.to(DTYPES[config.dtype]).cpu()
        if logvar.shape[1]:
            result[f"logvar{suffix}"] = logvar.to(DTYPES[config.dtype]).cpu()
    return result
