"""The latent cache stage, for structured and plain autoencoders alike."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from davae.data.latents import CacheManifest, Moments, shard_ranges, write_cache
from davae.data.source import ImageSource
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
) -> None:
    """Write the latent cache of a source. Whole shards that fit are kept, so that a stopped run goes on."""
    autoencoder.to(device).eval()
    scaling, layout = raw_scaling(autoencoder), layout_of(autoencoder)
    manifest = CacheManifest(
        layout=layout,
        autoencoder=weights_hash(autoencoder),
        source=source.fingerprint,
        size=size,
        flips=config.flips,
        dtype=config.dtype,
        precision=config.precision,
        shift=scaling.shift,
        scale=scaling.scale,
        class_names=tuple(source.class_names),
        ids=tuple(source.ids),
        labels=tuple(source.labels),
        captions=tuple(source.captions),
        skipped=tuple(source.skipped),
    )
    observer.begin("latents", len(source))

    @torch.no_grad()
    def encode(images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            mean, logvar = raw_moments(autoencoder, to_unit(images).to(device))
        dtype = DTYPES[config.dtype]
        return mean.to(dtype).cpu(), logvar.to(dtype).cpu()

    def shard(first: int, count: int) -> Moments:
        parts: dict[str, list[Tensor]] = {}
        for start in range(first, first + count, config.batch_size):
            indices = list(range(start, min(start + config.batch_size, first + count)))
            images = source.images(indices, size)
            views = {"": images, "_flip": images.flip(-1)} if config.flips else {"": images}
            for suffix, view in views.items():
                mean, logvar = encode(view)
                parts.setdefault(f"mean{suffix}", []).append(mean)
                if layout.detail_channels:
                    parts.setdefault(f"logvar{suffix}", []).append(logvar)
            observer.advance(indices[-1] + 1)
        return {name: torch.cat(tensors) for name, tensors in parts.items()}

    def shards() -> Iterator[tuple[int, int, Any]]:
        for first, count in shard_ranges(len(source), config.shard_size):
            yield first, count, lambda first=first, count=count: shard(first, count)

    write_cache(folder, manifest, shards())
    observer.end()
