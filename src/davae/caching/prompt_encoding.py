"""Captions through the text encoders of a pair, into a prompt cache.

Text encoders alone are loaded: of the transformer only its shape, which the pipelines ask for, and no autoencoder.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from davae.backbones.base import Backbone
from davae.backbones.pair import Pair
from davae.backbones.registry import BACKBONES, backbone_of
from davae.caching.settings import PromptsConfig
from davae.core.files import file_hash, text_hash
from davae.core.observer import Observer
from davae.core.precision import DTYPES, dtype_name
from davae.data.cache_files import WHOLE, Part, shard_ranges
from davae.data.prompt_cache import NULL, PromptManifest, PromptSet, write_prompts

_CHUNK = 1024  # prompts counted at once
_NAMED = 3  # overlong prompts named in the warning


def load_text_parts(pair: Pair, dtype: torch.dtype) -> Any:
    """The stock pipeline of a pair with its text encoders and tokenizers alone.

    Args:
        pair: a text encoder that it lacks (null in model_index.json) stays away.
        dtype: of the text encoders.

    Returns:
        The pipeline. Its transformer has no weights (meta device): zeros in place of a missing T5 get their width
        from its config.
    """
    with _quiet(), torch.device("meta"):
        outline = pair.model_class("transformer").from_config(pair.transformer_config)
    kept = {*pair.text_parts, "transformer", "scheduler"}
    others = [name for name, value in pair.index.items() if isinstance(value, list) and name not in kept]
    with _quiet():
        return pair.load(dtype, transformer=outline, **dict.fromkeys(others))


def text_encoders_hash(pair: Pair) -> str:
    """Hash of the contents of a pair's text encoders and tokenizers: configs, vocabularies, weights."""
    present = sorted(pair.text_parts)
    folder = pair.folder(present)
    files = [file for name in present for file in sorted((folder / name).rglob("*")) if file.is_file()]
    with ThreadPoolExecutor() as threads:
        digests = list(threads.map(file_hash, files))
    names = [file.relative_to(folder).as_posix() for file in files]
    return text_hash(json.dumps([present, list(zip(names, digests, strict=True))]))


def encode_prompts(
    pipe: Any,
    captions: Mapping[str, Sequence[str]],
    folder: Path,
    config: PromptsConfig,
    device: torch.device,
    observer: Observer,
    encoders: str,
    part: Part = WHOLE,
) -> None:
    """Write the prompt cache of captions. Whole shards that fit are kept, so that a stopped run goes on.

    Several processes share the work when all of them call this, see `davae.data.prompt_cache.write_prompts`.

    Args:
        pipe: with its text parts and at least the shape of its transformer, see `load_text_parts`.
        captions: of every sample id; one without any is encoded as the empty prompt, which is always there.
        folder: of the cache.
        config: how to encode and store. With SD3.5 and 256 tokens in 16 bit a prompt takes 2.7 MB.
        device: where the text encoders compute; they go back to where they were.
        observer: shows progress, which is that of this process's own shards. The main process's also says what was
            cut and what was empty.
        encoders: hash of the text encoders, see `text_encoders_hash`.
        part: the shards that this process encodes.

    Raises:
        DataError: a caption is not text, or the disk is full.
        FloatingPointError: an encoder overflowed.
        ValueError: the family is not trained from text by this library, or a text encoder is missing.
    """
    backbone, prompts = _encoding_backbone(pipe.transformer), PromptSet.of(captions)
    texts = prompts.prompts
    if prompts.num_empty and part.is_main:
        observer.say(f"{prompts.num_empty} of {len(captions)} images have no caption: encoded as the empty prompt.")

    encode = partial(_encoded, backbone, pipe, max_length=config.max_length, dtype=DTYPES[config.dtype])
    components = [getattr(pipe, name) for name in backbone.text_parts]
    modules = [component for component in components if isinstance(component, nn.Module)]
    with _quiet(), _on(device, modules), torch.no_grad():
        if part.is_main:
            _say_what_is_cut(backbone, pipe, prompts, captions, config.max_length, observer)
        row = encode([NULL])
        manifest = PromptManifest(
            encoders=encoders,
            max_length=config.max_length,
            dtype=config.dtype,
            source=prompts.fingerprint,
            tensors={name: (dtype_name(tensor.dtype), tuple(tensor.shape[1:])) for name, tensor in row.items()},
        )
        if part.is_main:
            size = len(texts) * sum(tensor.nbytes for tensor in row.values())
            observer.say(f"{len(texts)} different prompts take {size / 1e6:,.1f} MB in {folder}.")
        total, before = part.progress(shard_ranges(len(texts), config.shard_size))
        observer.begin("prompts", total)
        shard = partial(_shard, encode, texts, config.batch_size, before, observer)
        write_prompts(folder, manifest, prompts, config.shard_size, shard, part)
        observer.end()


def _encoding_backbone(transformer: object) -> Backbone:
    backbone = backbone_of(transformer)
    if backbone.encode_text is None:
        known = sorted(name for name, family in BACKBONES.items() if family.encode_text is not None)
        raise ValueError(
            f"Cannot encode prompts for a {backbone.class_name}; allowed are {', '.join(known)}. Take one of them."
        )
    return backbone


def _shard(
    encode: Callable[[Sequence[str]], dict[str, Tensor]],
    prompts: Sequence[str],
    batch_size: int,
    before: Mapping[int, int],
    observer: Observer,
    first: int,
    count: int,
) -> dict[str, Tensor]:
    """Embeddings of `count` prompts from `first` on, batch by batch into their places.

    `before` says how many prompts of this process come before those from `first` on.
    """
    shard: dict[str, Tensor] = {}
    for start in range(0, count, batch_size):
        stop = min(start + batch_size, count)
        for name, rows in encode(prompts[first + start : first + stop]).items():
            if name not in shard:
                shard[name] = rows.new_empty(count, *rows.shape[1:])
            shard[name][start:stop] = rows
        observer.advance(before[first] + stop)
    return shard


def _encoded(
    backbone: Backbone, pipe: Any, prompts: Sequence[str], max_length: int, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Embeddings on the CPU, masks as they are and the rest in `dtype`."""
    assert backbone.encode_text is not None
    encoded = backbone.encode_text(pipe, list(prompts), max_length)
    stored = {name: rows.to(dtype if rows.is_floating_point() else rows.dtype) for name, rows in encoded.items()}
    for name, rows in stored.items():
        finite = rows.flatten(1).isfinite().all(1)
        if not finite.all():
            raise FloatingPointError(
                f"Encoding prompts failed: {name} of {prompts[int(finite.int().argmin())][:60]!r} is not finite in "
                f"{dtype_name(dtype)}; T5 overflows float16. Set prompts.dtype to bfloat16 or float32."
            )
    return {name: rows.cpu() for name, rows in stored.items()}


def _say_what_is_cut(
    backbone: Backbone,
    pipe: Any,
    prompts: PromptSet,
    captions: Mapping[str, Sequence[str]],
    max_length: int,
    observer: Observer,
) -> None:
    """One warning about prompts of more tokens than an encoder takes. The pipeline cuts them off."""
    assert backbone.count_tokens is not None
    texts = prompts.prompts
    cut: dict[tuple[str, int], list[bool]] = {}
    observer.begin("prompt lengths", len(texts))
    for first in range(0, len(texts), _CHUNK):
        for name, (limit, lengths) in backbone.count_tokens(
            pipe, list(texts[first : first + _CHUNK]), max_length
        ).items():
            cut.setdefault((name, limit), []).extend(length > limit for length in lengths)
        observer.advance(min(first + _CHUNK, len(texts)))
    observer.end()
    overlong = np.any(list(cut.values()), axis=0)
    if not overlong.any():
        return
    affected = {text for text, is_long in zip(texts, overlong, strict=True) if is_long}
    samples = islice(((name, text) for name, texts in captions.items() for text in texts if text in affected), _NAMED)
    where = ", ".join(
        f"{sum(flags)} at {limit} tokens ({name})" for (name, limit), flags in cut.items() if any(flags)
    )
    first_ones = ", ".join(f"{name} ({text[:40]!r}...)" for name, text in samples)
    observer.say(
        f"Warning: {len(affected)} of {len(texts)} different prompts are too long, their ends are cut off: {where}. "
        f"The first: {first_ones}. Shorten them, or raise prompts.max_length where it is the limit."
    )


@contextmanager
def _on(device: torch.device, modules: Sequence[nn.Module]) -> Iterator[None]:
    """Modules on a device for a while."""
    homes = [next(module.parameters()).device for module in modules]
    try:
        for module in modules:
            module.to(device)
        yield
    finally:
        for module, home in zip(modules, homes, strict=True):
            module.to(home)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without bars of loading and without a warning for every prompt that is cut."""
    libraries = (diffusers_logging, transformers_logging)
    before = [(library, library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    try:
        for library in libraries:
            library.set_verbosity_error()
            library.disable_progress_bar()
        yield
    finally:
        for library, verbosity, bars in before:
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()
