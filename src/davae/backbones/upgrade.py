"""`davae.widen` and `davae.upgrade`: the same transformer class, and the same pipeline class, with more channels."""

import logging
from typing import Any

from accelerate import init_empty_weights

from davae.backbones.base import Backbone
from davae.backbones.registry import backbone_of
from davae.core.widen import Init, KeyReport, widen_inputs, widen_outputs
from davae.models.autoencoder import AutoencoderDA

logger = logging.getLogger(__name__)


def widen(transformer: Any, detail_channels: int, init: Init = "zero", seed: int = 0) -> Any:
    """A new transformer of the same class with `detail_channels` more latent channels.

    With init "zero" every weight is copied bit for bit or zero, so that the prediction on the base channels is
    the pretrained one for any detail input, and the prediction on the detail channels is 0.

    Args:
        transformer: a model of a known family; it is left as it is.
        detail_channels: D.
        init: "zero", or for ablations "random" and "repeat".
        seed: of the random initialisation.

    Raises:
        ValueError: the class is unknown, or D is not positive.
    """
    widened, report = widen_with_report(transformer, detail_channels, init, seed)
    logger.info("Widened %s by %d channels: %s", type(transformer).__name__, detail_channels, report)
    return widened


def widen_with_report(
    transformer: Any, detail_channels: int, init: Init = "zero", seed: int = 0
) -> tuple[Any, KeyReport]:
    """`widen`, and what happened to every key."""
    if detail_channels < 1:
        raise ValueError(f"Widening needs at least one detail channel; got {detail_channels}.")
    backbone = backbone_of(transformer)
    channels = transformer.config.in_channels + detail_channels
    # Private entries stay behind: diffusers would replace what `_use_default_values` names, widened or not.
    public = {key: value for key, value in transformer.config.items() if not key.startswith("_")}
    config = {**public, **backbone.widened_config(transformer.config, channels)}
    # Weights come from the source, so that a billion-parameter model is never initialised for nothing; buffers
    # that are not saved are computed as usual.
    with init_empty_weights(include_buffers=False):
        widened = type(transformer).from_config(config)
    state, report = _widened_state(transformer, backbone, channels, init, seed)
    expected = widened.state_dict().keys()
    if expected != state.keys():
        raise ValueError(
            f"The widened {backbone.class_name} expects other weights than its source has; "
            f"offending keys: {sorted(expected ^ state.keys())}."
        )
    frozen = {name for name, weight in transformer.named_parameters() if not weight.requires_grad}
    widened.load_state_dict(state, assign=True)
    for name, weight in widened.named_parameters():
        weight.requires_grad_(name not in frozen)
    widened.to(transformer.device)
    return widened.train(transformer.training), report


def _widened_state(
    transformer: Any, backbone: Backbone, channels: int, init: Init, seed: int
) -> tuple[dict[str, Any], KeyReport]:
    groups = backbone.output_groups(transformer.config)
    state, report = {}, KeyReport()
    for name, tensor in transformer.state_dict().items():
        if name in backbone.inputs:
            state[name] = widen_inputs(tensor, channels, init, seed)
            report.widened.append(name)
        elif name in backbone.outputs:
            state[name] = widen_outputs(tensor, channels, init, groups, seed)
            report.widened.append(name)
        else:
            state[name] = tensor.clone()
            report.copied.append(name)
    missing = {*backbone.inputs, *backbone.outputs} - state.keys()
    if missing:
        raise ValueError(f"This {backbone.class_name} lacks the weights to widen: {sorted(missing)}.")
    return state, report


def upgrade(
    pipe: Any,
    scale: int = 2,
    image_size: int | None = None,
    detail_channels: int | None = None,
    init: Init = "zero",
) -> Any:
    """A pipeline of the same class whose images have `scale` times the side on the same tokens.

    The autoencoder becomes an (untrained) `AutoencoderDA`, the transformer is widened; the other parts are shared
    with `pipe`. Train the autoencoder and fine-tune the transformer before you draw.

    Args:
        pipe: a diffusers pipeline with a `vae` and a `transformer` of known families.
        scale: s, 2 or 4.
        image_size: default side of the images, pixels; None keeps the token grid of `pipe`'s default size.
        detail_channels: D; None takes the base's number of channels.
        init: of the new weights, see `widen`.

    Raises:
        ValueError: a family is unknown, autoencoder and transformer do not match, or the size does not fit the grid.
    """
    transformer = pipe.transformer
    backbone = backbone_of(transformer)  # an unknown family is refused before anything is built
    vae = AutoencoderDA.from_base(pipe.vae, scale=scale, detail_channels=detail_channels)
    if transformer.config.in_channels != vae.layout.base_channels:
        raise ValueError(
            f"The autoencoder and the transformer are not a pair: {type(pipe.vae).__name__} has "
            f"{vae.layout.base_channels} latent channels, {type(transformer).__name__} takes "
            f"{transformer.config.in_channels}. Pass a pipeline whose parts were trained together."
        )
    widened = widen(transformer, vae.layout.detail_channels, init)
    if image_size is not None:
        widened.register_to_config(sample_size=_sample_size(vae, backbone, transformer.config, image_size))
    return type(pipe)(**{**pipe.components, "vae": vae, "transformer": widened})


def _sample_size(vae: AutoencoderDA, backbone: Backbone, config: Any, image_size: int) -> int:
    unit = vae.compression * config.patch_size
    if image_size < unit or image_size % unit:
        raise ValueError(
            f"image_size must be a multiple of {unit} (compression {vae.compression} x patch {config.patch_size}); "
            f"got {image_size}. Use {max(image_size // unit, 1) * unit}."
        )
    size = image_size // vae.compression
    if backbone.fixed_grid and size != config.sample_size:
        raise ValueError(
            f"A {backbone.class_name} draws one size only; got image_size {image_size}, allowed "
            f"{config.sample_size * vae.compression}. Leave image_size out."
        )
    return size
