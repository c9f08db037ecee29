"""Tiny autoencoders (TAESD, TAESD3, TAEF1, TAEF2 of madebyollin/taesd) -> `AutoencoderTiny` or `AutoencoderTAEF2`.

An autoencoder is two files, encoder and decoder, whose keys are the indices of an `nn.Sequential`. diffusers has the
same modules in the same order, but for the decoder's first, a clamp without weights, which it computes elsewhere.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from torch import Tensor

from davae.convert.keys import Arguments, ConversionError, ConversionReport, fit, foreign, names_of, shape_of
from davae.models.taef2 import AutoencoderTAEF2

KIND = "tae"


def recognises(keys: Iterable[str]) -> bool:
    """Whether the keys are those of one half, wrapped or not."""
    names = names_of(keys, _marks).values()
    return bool(names) and all(map(_marks, names))


def is_encoder(state: Mapping[str, Tensor]) -> bool:
    """Whether a half is the encoder: it begins with a convolution, the decoder with a clamp."""
    return "0.weight" in names_of(state, _marks).values()


def convert_tae(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor]
) -> tuple[AutoencoderTiny, ConversionReport]:
    """A tiny autoencoder with these weights; `AutoencoderTAEF2` where blocks have the pooled branch.

    Latents of the first kind are in the units that a transformer sees (scaling factor 1), TAEF2's in those of
    FLUX.2's own autoencoder.

    Args:
        first: one half, encoder or decoder.
        second: the other half.

    Raises:
        ConversionError: both are the same half, they do not belong together, or keys do not fit.
    """
    if is_encoder(first) == is_encoder(second):
        both = "encoders" if is_encoder(first) else "decoders"
        raise ConversionError(f"Both files are {both}; a tiny autoencoder is one encoder and one decoder.")
    encoder, decoder = (first, second) if is_encoder(first) else (second, first)
    inside = {"encoder": names_of(encoder, _marks), "decoder": names_of(decoder, _marks)}
    halves = {"encoder": encoder, "decoder": decoder}
    by_name = {half: {name: halves[half][key] for key, name in names.items()} for half, names in inside.items()}
    config = _config(by_name["encoder"], by_name["decoder"])
    pooled = any(".pool." in key for key in [*encoder, *decoder])
    with torch.device("meta"):
        model = AutoencoderTAEF2(**config) if pooled else AutoencoderTiny(**config)
    state = {f"{half}:{key}": tensor for half, weights in halves.items() for key, tensor in weights.items()}
    names = {
        f"{half}:{key}": f"{half}.layers.{_shifted(name, clamp)}"
        for half, clamp in (("encoder", 0), ("decoder", 1))
        for key, name in inside[half].items()
    }
    return fit(
        KIND,
        model,
        state,
        names,
        foreign(state, names),
        [f"read from shapes: {config['latent_channels']} latent channels"],
    )


def _marks(name: str) -> bool:
    return re.match(r"\d+\.(weight|bias|conv\.|pool\.|skip\.)", name) is not None


def _config(encoder: Mapping[str, Tensor], decoder: Mapping[str, Tensor]) -> Arguments:
    plain, blocks = _stages(encoder)
    plain_up, blocks_up = _stages(decoder)
    made, taken = shape_of(encoder, f"{plain[-1]}.weight")[0], shape_of(decoder, f"{plain_up[0]}.weight")[1]
    if made != taken:
        raise ConversionError(
            f"The two halves do not belong together: the encoder makes {made} latent channels, the decoder takes "
            f"{taken}. Give the files of one autoencoder."
        )
    return {
        "in_channels": shape_of(encoder, f"{plain[0]}.weight")[1],
        "out_channels": shape_of(decoder, f"{plain_up[-1]}.weight")[0],
        "latent_channels": made,
        "encoder_block_out_channels": [shape_of(encoder, f"{i}.weight")[0] for i in plain[:-1]],
        "decoder_block_out_channels": [shape_of(decoder, f"{i}.weight")[0] for i in plain_up[:-1]],
        "num_encoder_blocks": blocks,
        "num_decoder_blocks": blocks_up,
    }


def _stages(half: Mapping[str, Tensor]) -> tuple[list[int], list[int]]:
    """(indices of the plain convolutions, numbers of blocks between one and the next)."""
    plain = sorted({int(key.partition(".")[0]) for key in half if re.fullmatch(r"\d+\.weight", key)})
    blocks = {int(key.partition(".")[0]) for key in half if ".conv." in key}
    if len(plain) < 2:
        raise ConversionError(
            f"A half of a tiny autoencoder has a first and a last convolution; plain ones are at {plain}."
        )
    return plain, [sum(a < block < b for block in blocks) for a, b in zip(plain, plain[1:], strict=False)]


def _shifted(key: str, clamp: int) -> str:
    index, _, rest = key.partition(".")
    return f"{int(index) - clamp}.{rest}"
