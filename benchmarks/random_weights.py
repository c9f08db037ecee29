"""Pipelines of `benchmarks/geometries.py` with random weights and random prompt embeddings."""

from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any

import diffusers
import torch
from geometries import ENCODERS, Row
from torch import Tensor, nn

import davae
from davae.backbones.registry import BACKBONES


def random_model(make: Callable[[], Any], device: torch.device, dtype: torch.dtype) -> Any:
    """A model with small random weights and tables, never initialised: billions of parameters take seconds."""
    with torch.device("meta"):
        model = make()
    kept = (model._keep_in_fp32_modules or ()) if isinstance(model, diffusers.ModelMixin) else ()
    wide = 0.02 * torch.randn(2**20, device=device)
    pool = wide.to(dtype)
    made: dict[Tensor, Tensor] = {}  # by identity: tied weights stay one
    for path, module in model.named_modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    if tensor not in made:
                        made[tensor] = _filled(tensor, wide if any(part in path for part in kept) else pool)
                    held[name] = made[tensor]
    return model.eval()


def _filled(like: Tensor, pool: Tensor) -> Tensor:
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype, device=pool.device)
    tensor = torch.empty(like.shape, dtype=pool.dtype, device=pool.device)
    for part in tensor.view(-1).split(len(pool)):
        part.copy_(pool[: len(part)])
    return nn.Parameter(tensor, requires_grad=False) if isinstance(like, nn.Parameter) else tensor


def random_transformer(row: Row, device: torch.device, dtype: torch.dtype) -> Any:
    """The row's transformer, wider where it is upgraded."""
    backbone = BACKBONES[row.model.transformer.__name__]
    published = row.model.build()
    config = dict(row.model.config)
    if row.detail:
        channels = backbone.latent_channels(published.config) + row.detail
        config |= backbone.widened_config(published.config, channels)
    if backbone.default_size == "fixed":
        config["sample_size"] = row.side // (row.model.compression * row.scale)
    return random_model(lambda: row.model.transformer(**config), device, dtype)


def random_autoencoder(row: Row, device: torch.device, dtype: torch.dtype) -> Any:
    """The row's autoencoder, an `AutoencoderDA` where it is upgraded."""
    name, config = row.autoencoder
    if not row.detail:
        return random_model(lambda: getattr(diffusers, name)(**config), device, dtype)
    model = random_model(
        lambda: davae.AutoencoderDA(base_class=name, base_config=config, scale=row.scale, detail_channels=row.detail),
        device,
        dtype,
    )
    model.calibrate(torch.zeros(row.detail), torch.ones(row.detail))
    return model


def random_pipeline(row: Row, device: torch.device, dtype: torch.dtype) -> Any:
    """The stock pipeline of a row, without text encoders."""
    name = row.family.pipeline
    pipeline = getattr(davae if name in davae.__all__ else diffusers, name)
    absent = {
        name: None
        for name, parameter in signature(pipeline.__init__).parameters.items()
        if parameter.default is Parameter.empty and name != "self"
    }
    components = {
        "vae": random_autoencoder(row, device, dtype),
        "transformer": random_transformer(row, device, dtype),
        "scheduler": row.family.scheduler(),
    }
    pipe = pipeline(**{**absent, **components, **row.family.components})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def random_encoder(name: str, device: torch.device, dtype: torch.dtype) -> Any:
    """A text encoder of `ENCODERS`."""
    model, config = ENCODERS[name]
    return random_model(lambda: model(config), device, dtype)


def call_arguments(row: Row, batch: int, guided: bool, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of the pipeline's call but for the number of steps; embeddings as long as those of a prompt."""
    family = row.family
    arguments = {"output_type": "pt", **family.call}
    if guided or not family.guidance_doubles:
        arguments["guidance_scale"] = row.guidance
    else:
        arguments["guidance_scale"] = 1.0
    if not family.prompt:
        return {**arguments, "class_labels": [0] * batch}
    for prefix in ("", "negative_") if family.guidance_doubles else ("",):
        for name, shape in family.prompt.items():
            if "mask" in name:
                tensor = torch.ones(batch, *shape, dtype=torch.long, device=device)
            else:
                tensor = torch.randn(batch, *shape, device=device).to(dtype)
            arguments[prefix + name] = tensor
    return {**arguments, "height": row.side, "width": row.side}


def tokens(row: Row, transformer: Any) -> int:
    """Tokens a side."""
    unit = BACKBONES[row.model.transformer.__name__].token_side(transformer.config)
    return row.side // (row.model.compression * row.scale * unit)
