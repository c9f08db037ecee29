"""What draws: image i from its own seed and condition, so that it does not depend on its batch.

There is one sampler a kind of condition, for class labels and for text. Both take settings and a loaded pipeline, and
know no recipe.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from davae.core.names import Precision
from davae.core.pixels import enlarge, signed_to_unit, unit_to_uint8
from davae.core.precision import autocast
from davae.models.adapter import UpgradedAdapter, adapt
from davae.models.chunking import images_at_once

DECODED_AT_ONCE = 32
"""Images: an autoencoder needs far more memory an image than the transformer that drew its latent."""


class Sampler(Protocol):
    """Draws image i from its own seed and condition."""

    @property
    def warning(self) -> str | None:
        """What people should know before they wait; None where there is nothing."""

    def latents(self, indices: Sequence[int]) -> Tensor:
        """What the transformer draws for images `indices`: float32 [B, K, h, w], as the transformer sees latents."""

    def images(self, latents: Tensor, size: int | tuple[int, int] | None = None) -> Tensor:
        """Latents decoded: uint8 [B, 3, H, W] on the CPU.

        Args:
            latents: [B, K, h, w], as `latents` gives them, on any device.
            size: (height, width), or the side of a square, to which images are enlarged before they are rounded;
                None leaves them.
        """

    def captions(self, indices: Sequence[int]) -> list[str]:
        """What each image is of, for people."""


@torch.no_grad()
def decode(pipeline: Any, latents: Tensor, size: int | tuple[int, int] | None = None) -> Tensor:
    """Images of latents that a pipeline's transformer drew, a few at a time; see `Sampler.images`."""
    adapter = adapt(pipeline.vae)
    return torch.cat([_rounded(adapter.decode(part), size) for part in decoder_parts(pipeline, latents)])


@torch.no_grad()
def preview(pipeline: Any, latents: Tensor) -> Tensor:
    """The same of the base channels alone, decoded by the base autoencoder and enlarged.

    Raises:
        ValueError: the pipeline is not upgraded.
    """
    adapter = adapt(pipeline.vae)
    if not isinstance(adapter, UpgradedAdapter):
        raise ValueError(
            f"A preview shows the base channels of an upgraded pipeline; this one has a "
            f"{type(pipeline.vae).__name__}. Upgrade it first."
        )
    return torch.cat([_rounded(adapter.preview(part)) for part in decoder_parts(pipeline, latents)])


@contextmanager
def computing(transformer: nn.Module, precision: Precision) -> Iterator[None]:
    """Inside, a transformer computes in a `Precision` and predicts in float32.

    Schedulers of diffusers keep the state between steps in the dtype of the prediction; rounding would add up there.
    """
    if precision == "fp32":
        yield
        return
    hook = transformer.register_forward_hook(_predict_in_float32)
    try:
        with autocast(next(transformer.parameters()).device, precision):
            yield
    finally:
        hook.remove()


def _predict_in_float32(transformer: nn.Module, arguments: Any, output: Any) -> Any:
    # Text pipelines ask for tuples; `LightningDiTPipeline` asks for an output object and rounds nothing.
    return (output[0].float(), *output[1:]) if isinstance(output, tuple) else output


def decoder_parts(pipeline: Any, latents: Tensor) -> Iterator[Tensor]:
    """Latents in parts that the autoencoder can decode at once, on the device where it computes."""
    height, width = latents.shape[-2:]
    factor = adapt(pipeline.vae).compression
    for part in latents.split(images_at_once(height * factor, width * factor, DECODED_AT_ONCE)):
        yield part.to(pipeline._execution_device)
    pipeline.maybe_free_model_hooks()


def _rounded(images: Tensor, size: int | tuple[int, int] | None = None) -> Tensor:
    """Decoded images as uint8 on the CPU."""
    unit = signed_to_unit(images)
    return unit_to_uint8(unit if size is None else enlarge(unit, size))
