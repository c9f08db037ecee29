"""`davae pretrain`, second: the base latents of the training images, encoded once."""

from davae.caching.latent_encoding import encode_images
from davae.data.latent_cache import is_complete
from davae.models.adapter import adapt
from davae.run import build, inputs
from davae.run.checks import check_base_size
from davae.run.execute import Stage
from davae.run.run import Run


def run(run: Run) -> None:
    """Encode, each process its share; whole shards of an interrupted run are kept."""
    section, autoencoder = build.pretrain(run), build.trained_base_autoencoder(run)
    check_base_size(section.image_size, autoencoder)
    _ = adapt(autoencoder).scaling  # refused now if it declares none: the transformer would not know what it sees
    encode_images(
        autoencoder,
        run.data.train,
        section.image_size,
        run.folder.base_latents,
        section.cache,
        run.accelerator.device,
        run.observer,
        part=run.part,
    )


STAGE = Stage(
    name="pretrain-latents",
    verb="pretrain",
    section="pretrain.transformer",
    inputs=inputs.base_latents,
    run=run,
    output=lambda run: run.folder.base_latents,
    stands=is_complete,
    portable=True,
)
