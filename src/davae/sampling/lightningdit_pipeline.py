"""`LightningDiTPipeline`: class labels in, images out, as a diffusers pipeline."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers import FlowMatchEulerDiscreteScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from davae.models.adapter import adapt
from davae.models.lightningdit import LightningDiT
from davae.sampling.denoise import denoise
from davae.sampling.guidance import Guidance, guide_all


class LightningDiTPipeline(DiffusionPipeline):
    """Class-conditional generation with a LightningDiT over any supported autoencoder.

    Args:
        vae: a base autoencoder or an `AutoencoderDA`.
        transformer: a `LightningDiT` of the same number of channels.
        scheduler: its shift is in sigma: native shift 0.3 is 1 / 0.3 here.
    """

    model_cpu_offload_seq: Any = "transformer->vae"

    vae: Any
    transformer: LightningDiT
    scheduler: FlowMatchEulerDiscreteScheduler

    def __init__(self, vae: Any, transformer: LightningDiT, scheduler: FlowMatchEulerDiscreteScheduler) -> None:
        super().__init__()
        self.register_modules(vae=vae, transformer=transformer, scheduler=scheduler)
        given, taken = vae.config.latent_channels, transformer.config["in_channels"]
        if given != taken:
            raise ValueError(
                f"The autoencoder and the transformer are not a pair: the autoencoder has {given} latent channels, "
                f"the transformer takes {taken}."
            )
        self.image_processor = VaeImageProcessor(do_resize=False)

    @property
    def image_size(self) -> int:
        """Side of the images, pixels."""
        return self.transformer.config["sample_size"] * adapt(self.vae).compression

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int],
        num_inference_steps: int = 250,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guidance: Guidance = guide_all,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> Any:
        """Draw one image a label; returns an `ImagePipelineOutput`.

        Args:
            class_labels: 0 .. num_classes - 1.
            num_inference_steps: Euler steps; the reference counts grid points, so its 250 are 249 here.
            guidance_scale: 1 is off.
            guidance_interval: native times (0 = noise, 1 = data) between which guidance is on.
            guidance: see `sampling.guidance`.
            generator: one, or one an image (then an image does not depend on its batch).
            latents: noise [B, K, h, w] to start from instead.
            output_type: "pil", "np", "pt" (images in [0, 1]) or "latent" (what the transformer drew).
            return_dict: False returns a tuple of the images alone.
            on_step: called with the step number and the latents.

        Raises:
            ValueError: a label is out of range, or the generators are not as many as the labels.
        """
        self._check_labels(class_labels)
        if isinstance(generator, list) and len(generator) != len(class_labels):
            raise ValueError(
                f"Give one generator, or one an image; got {len(class_labels)} images, {len(generator)} generators."
            )
        device, dtype = self._execution_device, self.transformer.dtype
        labels = torch.tensor(list(class_labels), device=device)
        if latents is None:
            latents = self._noise(len(labels), generator)
        bar = self.progress_bar(total=num_inference_steps)

        def report(step: int, latents: Tensor) -> None:
            bar.update()
            if on_step is not None:
                on_step(step, latents)

        latents = denoise(
            lambda noisy, time, classes: self.transformer(noisy.to(dtype), time, classes).sample,
            latents.to(device),
            labels,
            torch.full_like(labels, self.transformer.null_class),
            self.scheduler,
            num_inference_steps,
            guidance_scale,
            guidance_interval,
            guidance,
            report,
        )
        bar.close()
        image: Any = latents if output_type == "latent" else self.decode(latents, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=image) if return_dict else (image,)

    @torch.no_grad()
    def decode(self, latents: Tensor, output_type: str = "pil") -> Any:
        """Images of latents that the transformer drew."""
        images = adapt(self.vae).decode(latents.to(self._execution_device))
        return self.image_processor.postprocess(images, output_type=output_type)

    def _noise(self, count: int, generator: torch.Generator | list[torch.Generator] | None) -> Tensor:
        side, channels = self.transformer.config["sample_size"], self.transformer.config["in_channels"]
        shape = (count, channels, side, side)
        return randn_tensor(shape, generator=generator, device=self._execution_device, dtype=torch.float32)

    def _check_labels(self, labels: Sequence[int]) -> None:
        count = self.transformer.config["num_classes"]
        wrong = [label for label in labels if not 0 <= label < count]
        if wrong:
            raise ValueError(f"Class labels must be between 0 and {count - 1}; got {wrong[:5]}.")


# The stored name in model_index.json: diffusers looks the class up as davae.LightningDiTPipeline.
LightningDiTPipeline.__module__ = "davae"
