"""What `davae doctor` examines and how it says what it found."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from davae.backbones.conditioning import conditioning_shapes
from davae.backbones.widening import widen_with_report
from davae.core.layout import LatentLayout
from davae.core.widen import KeyReport
from davae.data.splits import first
from davae.models.autoencoder import AutoencoderDA
from davae.models.scaling import scaling_of
from davae.stages.doctor.outline import Outline, outline_of
from davae.stages.encode import to_unit
from davae.stages.run import Run

Level = Literal["ok", "warning", "failed", "left out"]
_SHOWN = 8  # images that are encoded


@dataclass(frozen=True)
class Finding:
    """One line.

    Args:
        level: "failed" fails the command; "left out" needs something that is not there.
        found: what was found.
        advice: what to do; "" where nothing is to be done.
        values: the numbers behind it, as JSON values.
        check: name of the check, filled in by `examine`.
    """

    level: Level
    found: str
    advice: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    check: str = ""

    def __str__(self) -> str:
        return f"{self.level:>8}  {self.check}: {' '.join(f'{self.found} {self.advice}'.split())}"


@dataclass(frozen=True)
class EncodedImages:
    """A few training images in the autoencoder's latent."""

    base: Tensor
    """[N, C, h, w] in the transformer's units."""
    detail: tuple[Tensor, Tensor] | None
    """Mean and standard deviation [N, D, h, w] of the posterior, in the transformer's units; None without a trained
    and calibrated autoencoder."""


class Case:
    """A run under examination: what several checks need of it, made once.

    Args:
        run: of the recipe.
        gpu: name of the device that the run is meant for; None takes the one at hand.
        model: name of a published model that stands for the pair where cost is counted.
    """

    def __init__(self, run: Run, gpu: str | None = None, model: str | None = None) -> None:
        self.run, self.gpu, self.model = run, gpu, model

    @property
    def device(self) -> torch.device:
        """Where checks compute."""
        return self.run.accelerator.device

    @cached_property
    def outline(self) -> Outline:
        """The transformer as it is trained, without weights."""
        return outline_of(self.run, self.model)

    @cached_property
    def autoencoder(self) -> AutoencoderDA:
        """The trained autoencoder; before it is trained, the upgrade that its training starts from."""
        if self.has_tokenizer:
            return self.run.tokenizer()
        config = self.run.recipe.tokenizer
        assert config is not None
        upgraded = AutoencoderDA.from_base(
            self.run.base_autoencoder(),
            config.scale,
            config.detail_channels,
            clamp_base_image=config.clamp_base_image,
            base_units=config.base_units,
        )
        return upgraded.to(self.device).eval()

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is a trained one, here or in the run that it is taken from.

        Raises:
            FileNotFoundError: the run that it is taken from does not have it.
        """
        if "tokenizer" in self.run.recipe.reuse:
            return self.run.path_of("tokenizer").exists()
        return (self.run.folder / "tokenizer").exists()

    @property
    def layout(self) -> LatentLayout:
        """Channels of the latents."""
        return self.autoencoder.layout

    @cached_property
    def pretrained(self) -> Any:
        """The pair's transformer, fp32."""
        return self.run.pair.load_transformer().to(self.device)

    @cached_property
    def widened(self) -> tuple[Any, KeyReport]:
        """The same, widened as training starts from it, and what became of its keys."""
        config = self.run.recipe.finetune
        assert config is not None
        return widen_with_report(self.pretrained, self.layout.detail_channels, config.init, self.run.recipe.seed)

    @cached_property
    @torch.no_grad()
    def encoded(self) -> EncodedImages:
        """A few training images, spread over the set."""
        source = first(self.run.sources[0], _SHOWN)
        images = to_unit(source.images(range(len(source)), self.run.recipe.image_size))
        each = [self.autoencoder.moments(image[None].to(self.device)) for image in images]  # large ones do not fit
        base, mean, logvar = map(torch.cat, zip(*each, strict=True))
        if not self.autoencoder.is_calibrated:
            return EncodedImages(scaling_of(self.autoencoder.base_vae).normalise(base), None)
        base, mean = self.layout.split(self.autoencoder.raw_scaling.normalise(self.layout.join(base, mean)))
        deviation = torch.tensor(self.autoencoder.config.detail_std, device=mean.device).view(1, -1, 1, 1)
        return EncodedImages(base, (mean, (0.5 * logvar.float()).exp() / deviation))

    def random_conditioning(self, batch: int) -> dict[str, Tensor]:
        """Conditions [B, ...] of the right shapes: labels of existing classes, normal embeddings, full masks."""
        config, prompts = self.run.pair.transformer_config, self.run.recipe.prompts
        shapes = conditioning_shapes(self.run.pair.backbone, config, 1 if prompts is None else prompts.max_length)
        source = torch.Generator().manual_seed(self.run.recipe.seed)
        drawn = {}
        for name, (shape, dtype) in shapes.items():
            size = (batch, *shape)
            if name == "label":
                value = torch.randint(config["num_classes"], size, generator=source)
            elif dtype.is_floating_point:
                value = torch.randn(size, generator=source)
            else:
                value = torch.ones(size, dtype=dtype)
            drawn[name] = value.to(self.device)
        return drawn
