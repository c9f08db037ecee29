"""What the library needs to know of a family of diffusion transformers. One file and one test a family."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Convention = Literal["velocity", "native velocity", "noise", "v"]
"""What a model predicts, with data x and standard normal noise n.

velocity: n - x on the path (1 - sigma) x + sigma n, the flow matching of diffusers' schedulers.
native velocity: x - n on the path t x + (1 - t) n, see `core.flow`.
noise: n on the variance-preserving path a x + b n, with a and b of the scheduler's betas.
v: a n - b x on the same path (Salimans and Ho 2022).
"""

FLOW_CONVENTIONS: tuple[Convention, ...] = ("velocity", "native velocity")
"""What flow matching can train."""

Condition = Literal["label", "text"]
"""What images are drawn from.

label: the number of a class.
text: a prompt.
"""

CALL_ARGUMENTS: Mapping[Condition, str] = {"label": "class_labels", "text": "prompt"}
"""Condition -> the argument of a pipeline's call that takes it."""

Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]
"""Name -> (shape of one sample, dtype), by the names that `Backbone.velocity` takes."""

DefaultSize = Literal["stored", "fixed", "asked"]
"""Where the size of an image comes from when nobody names one.

stored: the config's `sample_size`, which means nothing else and can be changed.
fixed: the config's `sample_size`, which the positions are made for; other sizes cannot be drawn.
asked: height and width belong into every call, because the pipeline's default is hard-coded or because
    `sample_size` scales the positions and must stay.
"""


def rebuilt(pipe: Any, components: Mapping[str, object], pipeline_class: type | None = None) -> Any:
    """A pipeline with `pipe`'s settings from other components, of `pipe`'s class unless another is given."""
    known = signature(type(pipe).__init__).parameters
    settings = {key: value for key, value in pipe.config.items() if key in known and key not in components}
    return (pipeline_class or type(pipe))(**settings, **components)


def config_of(model: nn.Module) -> Any:
    """A model's config, also from inside a DDP wrap, which hides it."""
    return (model.module if isinstance(model, DistributedDataParallel) else model).config


def text_device(pipe: Any) -> torch.device:
    """Where a pipeline's text encoders compute."""
    device = pipe.text_encoder.device
    # Sequential offload leaves the weights on "meta" until a layer is called.
    return pipe._execution_device if device.type == "meta" else device


def token_lengths(tokenizer: Any, prompts: list[str]) -> list[int]:
    """Tokens of each prompt, special ones included, nothing cut off."""
    return [len(tokens) for tokens in tokenizer(prompts)["input_ids"]]


def _declared_channels(config: Any) -> int:
    return config.get("out_channels") or config.in_channels


def _all_weights(model: nn.Module) -> dict[str, Tensor]:
    return model.state_dict()


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """One family, as data and a few functions, which have names: what holds a family can be sent to another process.

    A widened transformer is the same class with another config and wider tensors: base channels first, new ones
    after them, in every group of channels that an embedder or a head holds.
    """

    class_name: str
    """Class of the transformer, as its config stores it."""
    convention: Convention
    condition: Condition
    conditioned_on: str
    """The same in words for people, with the arguments of the pipeline."""
    embedders: tuple[str, ...]
    """Exact paths of the layers (conv or linear) that take the latent: dimension 1 of their weights."""
    head: str | None
    """Exact path of the linear layer that makes the prediction; None where there is none (ControlNet)."""
    packing: int = 1
    """p: the pipeline folds p x p latent positions into one token of p * p * K features, feature
    k * p * p + phase, before the transformer sees them. 1: the transformer takes the latent [B, K, h, w], and the
    rows of its head are (position in the patch, prediction or variance, channel), channel innermost."""
    default_size: DefaultSize = "stored"
    lora_targets: tuple[str, ...] = ()
    """Ends of the module paths that LoRA adapts by default: the reference's attention, second feed-forward layer
    and AdaLN, of the image stream where there are two."""
    predicted_channels: Callable[[Any], int] = _declared_channels
    """(config) -> channels of the prediction: the input's, or twice as many with a learned sigma."""
    own_weights: Callable[[nn.Module], dict[str, Tensor]] = _all_weights
    """(model) -> its weights, without those that a pipeline lends it."""
    pipelines: tuple[str, ...] = ()
    """Class names of the stock pipelines (or davae's) that the library's samplers can draw from."""
    takes_negative: bool = False
    """Whether the pipeline's call takes a negative prompt that guidance leads away from."""
    takes_interval: bool = False
    """Whether guidance can be switched between steps: through the callback of the pipeline's call, or natively."""
    call_with: Mapping[str, object] = field(default_factory=dict)
    """Arguments without which the stock pipeline draws an upgraded model at a wrong size."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Pipelines that cannot draw with another number of channels or another compression: class name -> why."""
    rebuild: Callable[[Any, Mapping[str, object]], Any] = rebuilt
    """(pipeline, upgraded components) -> the upgraded pipeline."""
    velocity: Callable[[nn.Module, Tensor, Tensor, Mapping[str, Tensor]], Tensor] | None = None
    """(transformer or its DDP wrap, noisy latent [B, K, h, w], native time [B], conditions) -> native velocity
    [B, K, h, w]. The conditions are {"label": [B]}, or what `encode_text` gives, in any dtype. None where the family
    is not trained by this library, as for models that predict noise."""
    condition_shapes: Callable[[Any, int], Shapes] | None = None
    """(config, max length in tokens) -> names, shapes and dtypes of one sample's conditions, as `velocity` takes
    them: for estimates and random inputs without a text encoder. None where the family is not trained."""
    blocks: str | None = None
    """Name of the module list whose blocks the tokens of the image go through, each giving [B, N, D]; `num_layers` of
    the config counts them. None where nobody has looked inside."""
    denoise_anything: Callable[[nn.Module, Tensor, Tensor], object] | None = None
    """(transformer, latent [B, K, h, w] on the path t x + (1 - t) n, native time t [B]) -> its prediction without a
    class, which nobody looks at: the call is for what its blocks make of the latent. Given with `blocks`."""
    text_parts: tuple[str, ...] = ()
    """Names of the pipeline's components that encode text, tokenizers among them."""
    encode_text: Callable[[Any, list[str], int], dict[str, Tensor]] | None = None
    """(pipeline with its text parts, prompts, max length in tokens) -> tensors [B, ...], by the pipeline's own
    `encode_prompt`. Their names are arguments of the pipeline's call; with "negative_" before them they are those of
    the negative prompt. The empty prompt is encoded as the pipeline encodes an empty negative one."""
    count_tokens: Callable[[Any, list[str], int], dict[str, tuple[int, list[int]]]] | None = None
    """(pipeline, prompts, max length in tokens) -> for each tokenizer by name: how many tokens it keeps, and how many
    each prompt has. Special tokens count."""
    call_with_embeddings: Mapping[str, object] = field(default_factory=dict)
    """Arguments that the stock pipeline's call needs beside embeddings of a prompt and of a negative one."""

    def __post_init__(self) -> None:
        training = self._expect_all_or_none("velocity", "condition_shapes")
        self._expect_all_or_none("blocks", "denoise_anything")
        encoding = self._expect_all_or_none("text_parts", "encode_text", "count_tokens")
        contradictions = {
            f"it is trained, and predicts {self.convention}: allowed are {', '.join(FLOW_CONVENTIONS)}": (
                training and self.convention not in FLOW_CONVENTIONS
            ),
            "it is trained from text, which nothing encodes: give text_parts, encode_text and count_tokens": (
                training and self.is_text and not encoding
            ),
            "it draws from labels, and encodes text: leave text_parts, encode_text and count_tokens out": (
                encoding and not self.is_text
            ),
            "it draws from labels, and takes a negative prompt": self.takes_negative and not self.is_text,
            "guidance is switched by the samplers, which draw from none of its pipelines: name them": (
                self.takes_interval and not self.pipelines
            ),
        }
        for contradiction, is_true in contradictions.items():
            if is_true:
                raise ValueError(f"The family {self.class_name} contradicts itself: {contradiction}.")

    def _expect_all_or_none(self, *fields: str) -> bool:
        given = [name for name in fields if getattr(self, name)]
        if given and len(given) < len(fields):
            missing = ", ".join(name for name in fields if name not in given)
            raise ValueError(
                f"The family {self.class_name} is incomplete: got {', '.join(given)} without {missing}. Give all of "
                f"{', '.join(fields)}, or none."
            )
        return bool(given)

    @property
    def is_text(self) -> bool:
        """Whether images are drawn from prompts; else from class labels."""
        return self.condition == "text"

    @property
    def is_trained(self) -> bool:
        """Whether this library trains the family."""
        return self.velocity is not None and self.condition_shapes is not None

    @property
    def call_argument(self) -> str:
        """Name of the argument of the pipeline's call that says what is drawn."""
        return CALL_ARGUMENTS[self.condition]

    def shapes_of_conditions(self, config: Any, max_length: int) -> Shapes:
        """What one sample is conditioned on, by the names that `velocity` takes.

        Args:
            config: of the transformer.
            max_length: tokens of the long text encoder, as `encode_text` takes it; classes have none.

        Raises:
            ValueError: the family is not trained by this library.
        """
        if self.condition_shapes is None:
            raise ValueError(
                f"The conditions of a {self.class_name} are not known, because this library does not train it. Take "
                f"a family that is trained; docs/backbones.md has them."
            )
        return self.condition_shapes(config, max_length)

    @property
    def heads(self) -> tuple[str, ...]:
        """Exact paths of the patch embedder and output head, trained in full beside LoRA."""
        return self.embedders if self.head is None else (*self.embedders, self.head)

    def latent_channels(self, config: Any) -> int:
        """K of the latents that a model takes.

        Raises:
            ValueError: the model takes more than the latent.
        """
        self.predictions(config)
        return config.in_channels // self.packing**2

    def predictions(self, config: Any) -> int:
        """1, or 2 where a variance of every channel follows the prediction (learned sigma)."""
        taken, predicted = config.in_channels, self.predicted_channels(config)
        if predicted not in (taken, 2 * taken):
            raise ValueError(
                f"Cannot widen this {self.class_name}: its input is more than the latent (as for inpainting or "
                f"control). Got {taken} input and {predicted} predicted channels; allowed are as many, or twice as "
                f"many. Take the plain text-to-image model."
            )
        return predicted // taken

    def widened_config(self, config: Any, channels: int) -> dict[str, Any]:
        """Config entries that change when the latent has `channels` channels; an `out_channels` of None stays."""
        taken = channels * self.packing**2
        changes = {"in_channels": taken}
        if config.get("out_channels") is not None:
            changes["out_channels"] = self.predictions(config) * taken
        return changes

    def output_groups(self, config: Any) -> int:
        """Groups of (packed) channels that the rows of the head hold, see `widen_outputs`."""
        return config.patch_size**2 * self.predictions(config)

    def token_side(self, config: Any) -> int:
        """Latent positions a side that a token stands for."""
        return config.patch_size * self.packing

    def num_tokens(self, config: Any, height: int, width: int) -> int:
        """Tokens of an image with this latent height and width."""
        side = self.token_side(config)
        return (height // side) * (width // side)

    def lora_modules(self, model: nn.Module) -> list[str]:
        """Exact paths of the layers of a model that LoRA adapts by default, never its heads.

        peft compares ends of paths: "proj_out" of FLUX's single blocks would also catch the output head, and
        "attn.to_out" of FLUX.2's a list of layers.
        """
        ends = tuple(f".{target}" for target in self.lora_targets)
        return [
            path
            for path, module in model.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d) and f".{path}".endswith(ends) and path not in self.heads
        ]
