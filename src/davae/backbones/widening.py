"""`davae.widen`: the same transformer class with more latent channels."""

import logging
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from davae.backbones.base import Backbone, config_of
from davae.backbones.registry import backbone_of
from davae.core.names import Init
from davae.core.widen import KeyReport, widen_inputs, widen_outputs
from davae.models.inherit import constructor_arguments
from davae.models.instead import instead_of, may_be_transformer
from davae.models.plain import expect_plain

Transformer = TypeVar("Transformer")
"""A class of transformers, which comes back. For type checkers those that diffusers exports are no modules."""

logger = logging.getLogger(__name__)


def widen(transformer: Transformer, detail_channels: int, init: Init = "zero", seed: int = 0) -> Transformer:
    """A new transformer of the same class with `detail_channels` more latent channels.

    With init "zero" every weight is copied bit for bit or zero, so that the prediction on the base channels is
    the pretrained one for any detail input, and the prediction on the detail channels is 0.

    Args:
        transformer: a model of a known family; it is left as it is. ControlNets of SD3 widen too.
        detail_channels: D.
        init: "zero", or for ablations "random" and "repeat".
        seed: of the random initialisation.

    Raises:
        ValueError: the class is unknown, its weights are not plain (see `expect_plain`), the model takes more than
            the latent, or D is not positive.
    """
    _expect_transformer(transformer)
    widened, report = widen_with_report(transformer, detail_channels, init, seed)
    logger.info("Widened %s by %d channels: %s", type(transformer).__name__, detail_channels, report)
    return widened


def widen_with_report(
    transformer: Transformer, detail_channels: int, init: Init = "zero", seed: int = 0, *, consume: bool = False
) -> tuple[Transformer, KeyReport]:
    """`widen`, and what happened to every key.

    With `consume` the new transformer takes over the tensors that stay as they are, instead of copies, so that both
    need hardly more memory than one. The given transformer must not be used afterwards: it shares its weights.
    One without values (meta device) gives one without values.
    """
    if type(detail_channels) is not int or detail_channels < 1:
        raise ValueError(
            f"Widening needs at least one detail channel; got {detail_channels!r}. Give a whole number, as many as "
            f"the autoencoder has detail channels."
        )
    _expect_transformer(transformer, outline=True)
    backbone = backbone_of(transformer)
    source: Any = transformer
    channels = backbone.latent_channels(source.config) + detail_channels
    # What the class does not know, or derives itself, stays behind: diffusers would warn, or put defaults back.
    known = constructor_arguments(source)
    config = {**known, **backbone.widened_config(source.config, channels)}
    # Weights and buffers come from the source: a billion-parameter model is never initialised for nothing.
    with torch.device("meta"):
        widened = type(source).from_config(config)
    state, report = _widened_state(source, backbone, channels, init, seed)
    if not consume:
        state |= {name: state[name].clone() for name in report.copied}
    strangers = sorted(widened.state_dict().keys() ^ state.keys())
    if strangers:
        raise ValueError(
            f"The widened {backbone.class_name} expects other weights than its source has; {len(strangers)} "
            f"offending keys: {', '.join(strangers[:6])}. Unload what was added to it (an IP-Adapter, attention "
            f"processors with weights) first."
        )
    frozen = {name for name, weight in source.named_parameters() if not weight.requires_grad}
    widened.load_state_dict(state, assign=True)
    for name, weight in widened.named_parameters():
        weight.requires_grad_(name not in frozen)
    _take_buffers(source, widened, consume)
    return widened.train(source.training), report


def _expect_transformer(given: Any, outline: bool = False) -> None:
    if isinstance(given, nn.Module):
        expect_plain(given, "widen", outline=outline)
    if not may_be_transformer(given):
        raise ValueError(f"davae.widen takes a diffusion transformer of diffusers or davae; {instead_of(given)}")


def _widened_state(
    transformer: nn.Module, backbone: Backbone, channels: int, init: Init, seed: int
) -> tuple[dict[str, Tensor], KeyReport]:
    """New tensors for the layers that widen, the transformer's own for all others."""
    config, area = config_of(transformer), backbone.packing**2
    inputs = {f"{path}.weight" for path in backbone.embedders}
    outputs = {f"{backbone.head}.weight", f"{backbone.head}.bias"}
    taken, wide, groups = config.in_channels, channels * area, backbone.output_groups(config)
    state, report = {}, KeyReport()
    for name, tensor in backbone.own_weights(transformer).items():
        if name in inputs:
            # What follows the latent (a ControlNet's mask) follows the wider latent.
            columns = widen_inputs(tensor[:, :taken], wide, init, seed)
            state[name] = torch.cat([columns, tensor[:, taken:]], dim=1)
            report.widened.append(name)
        elif name in outputs:
            state[name] = widen_outputs(tensor, wide, init, groups, seed)
            report.widened.append(name)
        else:
            state[name] = tensor
            report.copied.append(name)
    return state, report


def _take_buffers(source: nn.Module, target: nn.Module, consume: bool) -> None:
    """Buffers too, saved or not: a position table that was rounded to bfloat16 stays rounded."""
    buffers = dict(source.named_buffers())
    for name, _ in target.named_buffers():
        owner, _, leaf = name.rpartition(".")
        setattr(target.get_submodule(owner), leaf, buffers[name] if consume else buffers[name].clone())
