"""`davae train-tokenizer`: detail encoder and joint decoder over the frozen base, then calibration."""

from typing import Any

import torch

from davae.core.files import folder_hash
from davae.core.moments import ChannelMoments
from davae.core.names import Precision
from davae.core.pixels import uint8_to_signed
from davae.core.precision import autocast
from davae.data.hold_out import first
from davae.data.image_source import ImageSource
from davae.models.autoencoder import AutoencoderDA
from davae.models.chunking import chunks, images_at_once
from davae.models.saving import saving
from davae.run import build
from davae.run.checks import check_pair
from davae.run.execute import Stage
from davae.run.fit import applied, fit
from davae.run.inputs import settings, transformer
from davae.run.run import Run

NAME = "tokenizer"


def depends_on(run: Run) -> dict[str, Any]:
    """What the tokenizer depends on."""
    config = run.recipe.tokenizer
    is_seen = config is not None and config.generative_alignment is not None
    return {
        "tokenizer": settings(config),
        "image_size": run.recipe.image_size,
        "data": run.data.train.fingerprint,
        "pair": folder_hash(run.base_path),
        "seed": run.recipe.seed,
        **({"transformer": transformer(run)} if is_seen else {}),
    }


def run(run: Run) -> None:
    """Train, average, calibrate, save."""
    config = run.recipe.tokenizer
    assert config is not None
    check_pair(run, len(run.data.train.class_names))
    torch.manual_seed(run.recipe.seed)
    autoencoder = build.new_tokenizer(config, build.base_autoencoder(run))
    distance = build.perceptual(config.perceptual, run.accelerator.device, run.observer.say)
    generative = build.generative_alignment(run, autoencoder)
    task = build.tokenizer_task(run, autoencoder, distance, generative)
    training_set = build.image_set(run, config, run.recipe.image_size)
    averages = fit(run, NAME, task, training_set, config, depends_on(run))
    with applied(averages["autoencoder"]):
        autoencoder.eval()
        sample = first(run.data.train, config.calibration_images)
        calibrate(autoencoder, sample, run.recipe.image_size, config.precision)
        if run.is_main:
            with saving(run.folder.tokenizer, autoencoder) as folder:
                autoencoder.save_pretrained(folder)


@torch.no_grad()
def calibrate(autoencoder: AutoencoderDA, sample: ImageSource, size: int, precision: Precision) -> None:
    """Measure mean and deviation of the sampled detail latent and store them in the model.

    Args:
        autoencoder: trained.
        sample: training images.
        size: their side, pixels.
        precision: in which the autoencoder computes.
    """
    means = ChannelMoments(autoencoder.layout.detail_channels)
    variances = ChannelMoments(autoencoder.layout.detail_channels)
    for indices in chunks(len(sample), images_at_once(size, size, limit=32)):
        images = uint8_to_signed(sample.images(indices, size)).to(autoencoder.device)
        with autocast(autoencoder.device, precision):
            _, mean, logvar = autoencoder.moments(images)
        means.update(mean)
        variances.update(logvar.float().exp())
    # Law of total variance: spread of the posterior means plus mean spread of the posteriors.
    autoencoder.calibrate(means.mean.float(), (means.var + variances.mean).sqrt().float())


STAGE = Stage(
    name=NAME,
    verb="train-tokenizer",
    section="tokenizer",
    inputs=depends_on,
    run=run,
    output=lambda run: run.folder.tokenizer,
    trains=True,
    portable=True,
)
