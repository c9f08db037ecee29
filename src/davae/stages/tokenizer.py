"""`davae train-tokenizer`: detail encoder and joint decoder over the frozen base, then calibration."""

from typing import Any

import torch

from davae.core.moments import ChannelMoments
from davae.data.source import ImageSource
from davae.data.splits import first
from davae.models.autoencoder import AutoencoderDA
from davae.stages.encode import to_unit
from davae.stages.portions import images_at_once
from davae.stages.run import Run, folder_hash, replace_folder, settings
from davae.stages.training import applied, fit, load_perceptual
from davae.train.feed import ImageSet
from davae.train.subjects import StructuredSubject
from davae.train.tokenizer import TokenizerTask


def inputs(run: Run) -> dict[str, Any]:
    """What the tokenizer depends on."""
    return {
        "tokenizer": settings(run.recipe.tokenizer),
        "image_size": run.recipe.image_size,
        "data": run.sources[0].fingerprint,
        "pair": folder_hash(run.base_path),
        "seed": run.recipe.seed,
    }


def work(run: Run) -> None:
    """Train, average, calibrate, save."""
    config = run.recipe.tokenizer
    assert config is not None
    run.check_pair(config.scale, len(run.sources[0].class_names))
    torch.manual_seed(run.recipe.seed)
    autoencoder = AutoencoderDA.from_base(
        run.base_autoencoder(),
        config.scale,
        config.detail_channels,
        clamp_base_image=config.clamp_base_image,
        base_units=config.base_units,
        warm=config.warm_start,
    )
    task = TokenizerTask(
        StructuredSubject(autoencoder, config, run.recipe.seed),
        config,
        perceptual=load_perceptual(config.perceptual, run.accelerator.device, run.observer.say),
        reduce=run.reduce,
    )
    training_set = ImageSet(
        run.sources[0], run.recipe.image_size, run.recipe.seed, flip=config.flip, crop_from=config.crop_from
    )
    averages = fit(run, "tokenizer", task, training_set, config, inputs(run))
    with applied(averages["autoencoder"]):
        autoencoder.eval()
        calibrate(autoencoder, run.sources[0], run.recipe.image_size, config.calibration_images, config.precision)
        if run.accelerator.is_main_process:
            autoencoder.save_pretrained(run.folder / ".tokenizer")
            replace_folder(run.folder / ".tokenizer", run.folder / "tokenizer")


@torch.no_grad()
def calibrate(autoencoder: AutoencoderDA, source: ImageSource, size: int, count: int, precision: str) -> None:
    """Measure mean and deviation of the sampled detail latent over `count` images and store them in the model."""
    sample = first(source, count)
    means = ChannelMoments(autoencoder.layout.detail_channels)
    variances = ChannelMoments(autoencoder.layout.detail_channels)
    device = autoencoder.device
    portion = images_at_once(size, size, limit=32)
    for start in range(0, len(sample), portion):
        images = sample.images(range(start, min(start + portion, len(sample))), size)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            _, mean, logvar = autoencoder.moments(to_unit(images).to(device))
        means.update(mean)
        variances.update(logvar.float().exp())
    # Law of total variance: spread of the posterior means plus mean spread of the posteriors.
    autoencoder.calibrate(means.mean.float(), (means.var + variances.mean).sqrt().float())
