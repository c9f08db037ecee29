"""Drawing prompts with a stock text-to-image pipeline."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

from torch import Tensor

from davae.sampling import sampler, stock_text
from davae.sampling.settings import SamplerSettings

Conditions = Mapping[str, Any]
"""Arguments of the pipeline's call that stand for prompts, a row an image."""


class Prompts(Protocol):
    """What images are of, as conditions."""

    @property
    def warning(self) -> str | None:
        """See `Sampler`."""

    def captions(self, indices: Sequence[int]) -> list[str]:
        """Prompts of images."""

    def rows(self, indices: Sequence[int]) -> Conditions:
        """Their conditions, a row an image."""

    def negatives(self) -> Conditions:
        """The condition that guidance leads away from, one row."""


class TypedPrompts:
    """Prompts that the pipeline's own encoders encode: each batch when it is drawn, the negative prompt once.

    Args:
        pipeline: with its text encoders.
        prompts: image i is of prompt i modulo their number.
        max_length: tokens of the long text encoder; None takes the pipeline's default.
        negative: what guidance leads away from.

    Raises:
        ValueError: there is no prompt, or one is not text or empty; or the pipeline cannot be drawn from, or takes no
            negative prompt.
    """

    def __init__(
        self, pipeline: Any, prompts: Sequence[str], max_length: int | None = None, negative: str = ""
    ) -> None:
        stock_text.check_prompts(prompts)
        stock_text.require_drawable(type(pipeline).__name__, 1.0, negative_prompt=negative)
        self.pipeline, self.prompts, self.negative = pipeline, prompts, negative
        self.max_length = stock_text.default_length(pipeline) if max_length is None else max_length
        self._last: tuple[list[int], Conditions] | None = None
        self._negatives: Conditions | None = None

    @cached_property
    def warning(self) -> str | None:
        """About prompts whose ends no text encoder reads."""
        cut = stock_text.truncated(self.pipeline, list(dict.fromkeys(self.prompts)), self.max_length)
        return stock_text.describe_truncated(cut, self.max_length) if cut else None

    def captions(self, indices: Sequence[int]) -> list[str]:
        """See `Prompts`."""
        return [self.prompts[index % len(self.prompts)] for index in indices]

    def rows(self, indices: Sequence[int]) -> Conditions:
        """See `Prompts`. Two samplers that draw the same batch share one encoding."""
        if self._last is None or self._last[0] != list(indices):
            encoded = stock_text.encode(self.pipeline, self.captions(indices), self.max_length)
            self._last = (list(indices), encoded)
        return self._last[1]

    def negatives(self) -> Conditions:
        """See `Prompts`."""
        if self._negatives is None:
            self._negatives = stock_text.encode(self.pipeline, [self.negative], self.max_length)
        return self._negatives


class EncodedPrompts:
    """Prompts that were encoded before; the pipeline may lack its text encoders.

    Args:
        prompts: for people.
        rows: their embeddings [N, ...].
        negatives: those of the negative prompt [1, ...].
    """

    def __init__(self, prompts: Sequence[str], rows: Mapping[str, Tensor], negatives: Mapping[str, Tensor]) -> None:
        self.prompts, self._rows, self._negatives = prompts, rows, negatives
        self.warning = None

    def captions(self, indices: Sequence[int]) -> list[str]:
        """See `Prompts`."""
        return [self.prompts[index] for index in indices]

    def rows(self, indices: Sequence[int]) -> Conditions:
        """See `Prompts`."""
        return {name: tensor[list(indices)] for name, tensor in self._rows.items()}

    def negatives(self) -> Conditions:
        """See `Prompts`."""
        return self._negatives


class TextSampler:
    """A `Sampler` of prompts.

    Args:
        pipeline: of a family that is drawn from by text, on its device, upgraded or not.
        settings: seeds, steps and guidance; guidance of single channels is for classes alone.
        prompts: what images are of.
        size: (height, width) of the images, pixels.

    Raises:
        ValueError: the pipeline cannot be drawn from, or not with this guidance.
    """

    def __init__(self, pipeline: Any, settings: SamplerSettings, prompts: Prompts, size: tuple[int, int]) -> None:
        stock_text.require_drawable(type(pipeline).__name__, settings.guidance_scale, settings.guidance_interval)
        self.pipeline, self.settings, self.prompts, self.size = pipeline, settings, prompts, size
        pipeline.set_progress_bar_config(disable=True)

    @property
    def warning(self) -> str | None:
        """See `Sampler`."""
        return self.prompts.warning

    def latents(self, indices: Sequence[int]) -> Tensor:
        """See `Sampler`."""
        settings, (height, width) = self.settings, self.size
        # Outside of autocast: training's captions were encoded in the encoders' own precision.
        rows = self.prompts.rows(indices)
        needs_negatives = stock_text.needs_negatives(self.pipeline, settings.guidance_scale)
        negatives = self.prompts.negatives() if needs_negatives else None
        with sampler.computing(self.pipeline.transformer, settings.precision):
            return stock_text.draw_encoded(
                self.pipeline,
                rows,
                negatives,
                [settings.seed + index for index in indices],
                height=height,
                width=width,
                steps=settings.steps,
                guidance_scale=settings.guidance_scale,
                guidance_interval=settings.guidance_interval,
            ).float()

    def images(self, latents: Tensor, size: int | tuple[int, int] | None = None) -> Tensor:
        """See `Sampler`."""
        return sampler.decode(self.pipeline, latents, size)

    def captions(self, indices: Sequence[int]) -> list[str]:
        """See `Sampler`."""
        return self.prompts.captions(indices)
