"""A run under examination: what several checks of `davae doctor` need of it, made once."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from davae.core.layout import LatentLayout
from davae.core.pixels import uint8_to_signed
from davae.core.widen import KeyReport
from davae.data.hold_out import first
from davae.models.adapter import adapt
from davae.models.autoencoder import AutoencoderDA
from davae.models.declared_scaling import scaling_of
from davae.run import build, geometry
from davae.run.rounds import Round
from davae.run.run import Run
from davae.tools.doctor.trainings import Outline, StageCost

_ENCODED = 8  # images that are encoded


@dataclass(frozen=True)
class EncodedImages:
    """A few training images in the autoencoder's latent."""

    base: Tensor
    """[N, C, h, w] in the transformer's units."""
    detail: tuple[Tensor, Tensor] | None
    """Mean and standard deviation [N, D, h, w] of the posterior, in the transformer's units; None without a trained
    and calibrated autoencoder."""


class Examination:
    """A run, and what its checks share.

    Args:
        run: of the recipe.
        gpu: name of the device that the run is meant for; None takes the one at hand.
        model: name of a published model that stands for the pair where cost is counted.
        devices: that share the run where cost is counted.
    """

    def __init__(self, run: Run, gpu: str | None = None, model: str | None = None, devices: int = 1) -> None:
        self.run, self.gpu, self.model, self.devices = run, gpu, model, devices

    @property
    def device(self) -> torch.device:
        """Where checks compute."""
        return self.run.accelerator.device

    @cached_property
    def outline(self) -> Outline:
        """Networks without weights."""
        return Outline(self.run, self.model, self.devices)

    @cached_property
    def stage_costs(self) -> list[StageCost]:
        """What every stage costs, in order."""
        return [count() for _, count in self.outline.costs()]

    @cached_property
    def autoencoder(self) -> AutoencoderDA:
        """The trained autoencoder; before it is trained, the upgrade that its training starts from."""
        if self.has_tokenizer:
            return build.trained_tokenizer(self.run)
        config = self.run.recipe.tokenizer
        assert config is not None
        return build.new_tokenizer(config, build.base_autoencoder(self.run)).to(self.device).eval()

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is a trained one, here or in the run that it is taken from.

        Raises:
            FileNotFoundError: the run that it is taken from does not have it.
        """
        if "tokenizer" in self.run.recipe.reuse:
            return self.run.result("tokenizer").exists()
        return self.run.folder.tokenizer.exists()

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
        current = Round(self.run)
        size = self.run.recipe.image_size
        return build.widened(self.pretrained, geometry.upgraded(self.run), size, current.config.init, current.seed)

    @cached_property
    @torch.no_grad()
    def encoded(self) -> EncodedImages:
        """A few training images, spread over the set."""
        source = first(self.run.data.train, _ENCODED)
        images = uint8_to_signed(source.images(range(len(source)), self.run.recipe.image_size))
        adapter = adapt(self.autoencoder)
        moments = [adapter.moments(image[None].to(self.device)) for image in images]  # large ones do not fit together
        mean, logvar = map(torch.cat, zip(*moments, strict=True))
        if not self.autoencoder.is_calibrated:
            base, _ = self.layout.split(mean)
            return EncodedImages(scaling_of(self.autoencoder.base_vae).normalise(base), None)
        base, detail = self.layout.split(adapter.raw_scaling.normalise(mean))
        deviation = torch.tensor(self.autoencoder.config["detail_std"], device=mean.device).view(1, -1, 1, 1)
        return EncodedImages(base, (detail, (0.5 * logvar.float()).exp() / deviation))

    def random_conditions(self, batch: int) -> dict[str, Tensor]:
        """Conditions [B, ...] of the right shapes: labels of existing classes, normal embeddings, full masks."""
        config, prompts = self.run.pair.transformer_config, self.run.recipe.prompts
        shapes = self.run.pair.backbone.shapes_of_conditions(config, 1 if prompts is None else prompts.max_length)
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
