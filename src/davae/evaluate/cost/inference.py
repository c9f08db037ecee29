"""What a stage without training costs: encoding images, drawing latents, decoding them."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from davae.backbones.registry import backbone_of
from davae.core.names import Precision
from davae.core.precision import autocast
from davae.evaluate.cost.cost import Cost
from davae.evaluate.cost.cuda_autocast import cast_as_cuda
from davae.evaluate.cost.flops import Flops, flop_counter
from davae.evaluate.cost.live_memory import LiveStorages
from davae.evaluate.cost.memory import Memory, bytes_by_dtype
from davae.evaluate.cost.stand_in import StandIn
from davae.evaluate.cost.workload import Workload
from davae.models.adapter import adapt
from davae.models.autoencoder import AutoencoderDA
from davae.train.batch import Batch

Call = Callable[[Any, Batch], object]
"""(network, batch) -> what it makes of it."""


def encoding_cost(
    stage: str, autoencoder: Any, height: int, width: int, *, at_once: int, images: int, precision: Precision
) -> Cost:
    """Cost of raw moments, as a latent cache stores them.

    Args:
        stage: for people.
        autoencoder: plain or upgraded, on any device; it is left as it is. Tiling and slicing count where they are
            on.
        height: of the images, pixels.
        width: likewise.
        at_once: images on a device at once.
        images: in all, mirrored ones included.
        precision: it computes in.

    Raises:
        ValueError: the class of the autoencoder is unknown, or the size does not fit it.
    """
    batch = {"image": torch.empty(at_once, 3, height, width, device="meta")}
    memory = forward_memory(autoencoder, _encode, batch, precision)
    return Cost(stage, memory, at_once, forward_flops(autoencoder, _encode, batch), images, precision)


def decoding_cost(
    stage: str, autoencoder: Any, height: int, width: int, *, at_once: int, images: int, precision: Precision
) -> Cost:
    """Cost of images from the transformer's latents; see `encoding_cost`."""
    adapter = adapt(autoencoder)
    grid = height // adapter.compression, width // adapter.compression
    batch = {"latent": torch.empty(at_once, adapter.layout.channels, *grid, device="meta")}
    memory = forward_memory(autoencoder, _decode, batch, precision)
    return Cost(stage, memory, at_once, forward_flops(autoencoder, _decode, batch), images, precision)


def drawing_cost(
    stage: str,
    transformer: Any,
    workload: Workload,
    *,
    at_once: int,
    images: int,
    steps: int,
    guided: bool,
    precision: Precision,
) -> Cost:
    """Cost of latents from noise: what the transformer takes, without text encoders.

    Args:
        stage: for people.
        transformer: of a family that is trained by its velocity, on any device; it is left as it is.
        workload: what it is given.
        at_once: images on a device at once.
        images: in all.
        steps: predictions an image.
        guided: whether a prediction takes two passes; they are one batch of twice as many rows.
        precision: it computes in.
    """
    passes = 2 if guided else 1
    rows = passes * at_once
    shapes = {"latent": torch.empty(rows, *workload.latent, device="meta"), "time": torch.empty(rows, device="meta")}
    batch = shapes | workload.conditions(rows)
    memory = forward_memory(transformer, _predict, batch, precision)
    once = forward_flops(transformer, _predict, batch)
    return Cost(stage, memory, at_once, Flops(once.forward * passes * steps), images, precision)


def forward_memory(network: nn.Module, call: Call, batch: Batch, precision: Precision) -> Memory:
    """Memory of a call without gradients.

    Args:
        network: on any device; it is left as it is.
        call: what is done with it, in eval mode.
        batch: tensors of the meta device are shapes alone.
        precision: as CUDA computes.
    """
    stand_in = _stand_in(network, torch.device("cpu"))
    if precision == "bf16":
        cast_as_cuda(stand_in.copy)
    with ExitStack() as stack:
        stack.enter_context(stand_in.mode)
        live = stack.enter_context(LiveStorages(stand_in.tensors))
        stack.enter_context(torch.no_grad())
        stack.enter_context(autocast(torch.device("cpu"), precision))
        call(stand_in.copy, stand_in.inputs(batch))
    return Memory(weights=bytes_by_dtype(stand_in.tensors), activations=live.peak)


def forward_flops(network: nn.Module, call: Call, batch: Batch) -> Flops:
    """FLOPs of a call on the first row of a batch; see `forward_memory`."""
    stand_in = _stand_in(network, torch.device("meta"))
    with torch.no_grad(), flop_counter() as counter:
        call(stand_in.copy, stand_in.inputs({name: tensor[:1] for name, tensor in batch.items()}))
    return Flops(counter.get_total_flops())


def _stand_in(network: Any, device: torch.device) -> StandIn[Any]:
    """A copy in eval mode, whose latent statistics can be read: it is a trained one whose cost is asked for."""
    stand_in = StandIn(network, device)
    copied = stand_in.copy.eval()
    if copied.config.get("batch_norm_eps") is not None:
        # The statistics of FLUX.2 are buffers and have no values here; a factor costs the same.
        copied.register_to_config(batch_norm_eps=None, scaling_factor=1.0)
    if isinstance(copied, AutoencoderDA) and not copied.is_calibrated:
        channels = copied.layout.detail_channels
        copied.calibrate(torch.zeros(channels), torch.ones(channels))
    return stand_in


def _encode(autoencoder: Any, batch: Batch) -> object:
    return adapt(autoencoder).moments(batch["image"])


def _decode(autoencoder: Any, batch: Batch) -> object:
    return adapt(autoencoder).decode(batch["latent"])


def _predict(transformer: Any, batch: Batch) -> object:
    velocity = backbone_of(transformer).velocity
    assert velocity is not None  # a `Workload` is of no other family
    conditions = {name: tensor for name, tensor in batch.items() if name not in ("latent", "time")}
    return velocity(transformer, batch["latent"], batch["time"], conditions)
