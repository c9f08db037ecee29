"""`davae pretrain`, first: a base autoencoder from scratch, and the scale of its latents."""

from collections.abc import Mapping
from typing import Any

import torch

from davae.core.moments import ChannelMoments
from davae.core.pixels import uint8_to_signed
from davae.data.hold_out import first
from davae.data.image_source import ImageSource
from davae.models.adapter import adapt
from davae.models.chunking import chunks, images_at_once
from davae.models.saving import saving
from davae.run import build, inputs
from davae.run.checks import check_base_size
from davae.run.execute import Stage
from davae.run.fit import applied, fit
from davae.run.record import write_provenance
from davae.run.run import Run

NAME = "pretrain-autoencoder"
STATISTICS_IMAGES = 4096
"""Images over which the scale of the latents is measured, at most."""


def run(run: Run) -> None:
    """Train, average, measure the scale of the latents, save."""
    section = build.pretrain(run)
    config = section.autoencoder
    assert config is not None
    torch.manual_seed(run.recipe.seed)
    autoencoder = build.new_base_autoencoder(config)
    check_base_size(section.image_size, autoencoder)
    vision = build.vision_alignment(run, autoencoder)
    distance = build.perceptual(config.perceptual, run.accelerator.device, run.observer.say)
    task = build.base_autoencoder_task(run, autoencoder, distance, vision)
    training_set = build.image_set(run, config, section.image_size)
    averages = fit(run, NAME, task, training_set, config, inputs.base_autoencoder(run))
    with applied(averages["autoencoder"]), torch.no_grad():
        autoencoder.eval()
        statistics = latent_statistics(autoencoder, first(run.data.train, STATISTICS_IMAGES), section.image_size)
        autoencoder.register_to_config(**statistics)
        if run.is_main:
            with saving(run.folder.base_autoencoder, autoencoder) as folder:
                autoencoder.save_pretrained(folder)
                write_provenance(folder, run.recipe.as_dict(), run.folder.stats, (NAME,))
    run.accelerator.wait_for_everyone()


def latent_statistics(autoencoder: Any, sample: ImageSource, size: int) -> Mapping[str, Any]:
    """Config entries that give the transformer latents of about unit size.

    AutoencoderKL has a mean and a deviation for each channel, as LightningDiT's training has (its channels are
    not centred); AutoencoderDC has one factor, taken from the root mean square.
    """
    adapter = adapt(autoencoder)
    moments = ChannelMoments(adapter.layout.channels)
    for indices in chunks(len(sample), images_at_once(size, size, limit=64)):
        images = uint8_to_signed(sample.images(indices, size))
        moments.update(adapter.moments(images.to(autoencoder.device))[0])
    if "latents_std" not in autoencoder.config:
        return {"scaling_factor": float((moments.mean.square() + moments.var).mean().rsqrt())}
    mean, std = moments.mean.tolist(), moments.var.sqrt().tolist()
    # A factor of 1: diffusers multiplies with it beside the deviations.
    return {"scaling_factor": 1.0, "latents_mean": mean, "latents_std": std}


STAGE = Stage(
    name=NAME,
    verb="pretrain",
    section="pretrain.autoencoder",
    inputs=inputs.base_autoencoder,
    run=run,
    output=lambda run: run.folder.base_autoencoder,
    trains=True,
    portable=True,
)
