"""DiT, SiT and REPA checkpoints -> diffusers' `DiTTransformer2DModel`. One network, three ways to use it.

DiT (Peebles and Xie 2023) predicts noise, SiT (Ma et al. 2024) and REPA (Yu et al. 2025) a velocity, in opposite
times. Weights do not show which, so that the caller names the kind; the converted folder's `conversion.json` says it.
diffusers keeps a copy of the embedders of time and label in every block.

One constant of diffusers' class is not DiT's: frequency k of the time embedding is 10000^(-k / 127) instead of
10000^(-k / 128). Over SiT's times in [0, 1] the first layer of the embedding makes up for it (`respaced`). Over DiT's
steps up to 999 nothing can; the weights stay as they are, which is what the hub's DiT folders hold.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from torch import Tensor

from davae.convert.keys import Arguments, ConversionError, ConversionReport, fit, foreign, sort_keys
from davae.convert.transformer import (
    DRIFT,
    EQUAL,
    Sizes,
    position_difference,
    rounding,
    sizes_of,
    transformer_names,
)
from davae.models.embeddings import sincos_position_table

DIT, SIT, REPA = "dit", "sit", "repa"
CONVENTIONS = {
    DIT: "noise at the steps 0 .. 999 of DDPM with linear betas from 0.0001 to 0.02; where the output has twice the "
    "channels, their second half is the variance",
    SIT: "velocity data - noise on the linear path, time in [0, 1], 1 = data; where the output has twice the "
    "channels, their second half is unused. DiTPipeline would take it for noise",
    REPA: "velocity noise - data on the linear path, time in [0, 1], 1 = noise. DiTPipeline would take it for noise",
}
"""Kind -> what the model predicts, at which times."""
KINDS = tuple(CONVENTIONS)
EXTRAS = {"projectors.": "head of REPA's alignment loss, used in its training only"}
HEADS = {(1152, 28): 16, (1024, 24): 16, (768, 12): 12, (384, 12): 6}
"""(width, layers) -> heads of the published sizes XL, L, B and S."""
TIME_CHANNELS = 256
"""Sines and cosines of the time embedding."""
STENCIL = 8
"""Frequencies that `respaced` interpolates between."""

_BLOCK = "transformer_blocks.*.norm1.emb."
_PLACES = (
    (r"x_embedder\.proj\.", "pos_embed.proj."),
    (r"t_embedder\.mlp\.0\.", f"{_BLOCK}timestep_embedder.linear_1."),
    (r"t_embedder\.mlp\.2\.", f"{_BLOCK}timestep_embedder.linear_2."),
    (r"y_embedder\.", f"{_BLOCK}class_embedder."),
    (r"blocks\.(\d+)\.adaLN_modulation\.1\.", r"transformer_blocks.\1.norm1.linear."),
    (r"blocks\.(\d+)\.attn\.qkv\.", r"transformer_blocks.\1.attn1.to_{q,k,v}."),
    (r"blocks\.(\d+)\.attn\.proj\.", r"transformer_blocks.\1.attn1.to_out.0."),
    (r"blocks\.(\d+)\.mlp\.fc1\.", r"transformer_blocks.\1.ff.net.0.proj."),
    (r"blocks\.(\d+)\.mlp\.fc2\.", r"transformer_blocks.\1.ff.net.2."),
    (r"final_layer\.adaLN_modulation\.1\.", "proj_out_1."),
    (r"final_layer\.linear\.", "proj_out_2."),
)
"""Beginning of a name -> its place: `*` stands for every block, `{q,k,v}` for thirds of the rows."""


def recognises(keys: Iterable[str]) -> bool:
    """Whether the keys are of this layout, wrapped or not."""
    names = set(transformer_names(keys).values())
    return {"x_embedder.proj.weight", "y_embedder.embedding_table.weight", "blocks.0.mlp.fc1.weight"} <= names


def kind_of(keys: Iterable[str]) -> str:
    """The kind, as far as keys show it: REPA's checkpoints have its projectors.

    Raises:
        ConversionError: it may be DiT or SiT.
    """
    if any(name.startswith("projectors.") for name in transformer_names(keys).values()):
        return REPA
    meanings = "\n".join(f"  {kind}: {meaning}" for kind, meaning in CONVENTIONS.items())
    raise ConversionError(
        f"DiT, SiT and REPA have one network, and weights do not show what it predicts. Say which it is with kind:\n"
        f"{meanings}"
    )


def convert_dit(
    state: Mapping[str, Tensor], kind: str, num_attention_heads: int | None = None
) -> tuple[DiTTransformer2DModel, ConversionReport]:
    """A `DiTTransformer2DModel` with these weights; its config is read from keys and shapes.

    Args:
        state: one set of weights.
        kind: "dit", "sit" or "repa".
        num_attention_heads: for sizes that are not among the published ones.

    Raises:
        ConversionError: keys are missing, unexpected or misshapen, the position table is not the computed one, or
            the model norms queries and keys.
    """
    names = _canonical(state)
    kept, dropped = sort_keys(names, EXTRAS, places={})
    dropped |= foreign(state, names)
    by_name = {name: state[key] for key, name in kept.items()}
    sizes = sizes_of(by_name)
    _check_no_qk_norm(by_name)
    table = _check_positions(by_name, sizes)
    config = _config(sizes, num_attention_heads)
    dropped |= {key: table for key, name in kept.items() if name == "pos_embed"}

    renamed = {key: _place(name) for key, name in kept.items() if key not in dropped}
    tensors: dict[str, Tensor] = {}
    places: dict[str, str] = {}
    for key, place in renamed.items():
        weight = state[key]
        if kind != DIT and kept[key] == "t_embedder.mlp.0.weight" and weight.shape[1:] == (TIME_CHANNELS,):
            weight = respaced(weight)
        for number, (target, part) in enumerate(_spread(place, weight, sizes.num_layers)):
            tensors[f"{key}[{number}]"], places[f"{key}[{number}]"] = part, target
    with torch.device("meta"):
        model = DiTTransformer2DModel(**config)
    model, report = fit(kind, model, tensors, places, dropped, _notes(kind, sizes, config))
    # Not among the weights, so it is still on the meta device.
    model.pos_embed.pos_embed = sincos_position_table(sizes.hidden_size, sizes.grid)[None]
    return model, replace(report, renamed=renamed)  # by the keys of the file, not by their copies and parts


def respaced(weight: Tensor) -> Tensor:
    """The first layer of the time embedding, [D, 256], for diffusers' frequencies; for times in [0, 1].

    There cos(f t) and sin(f t) are smooth in log f, so that each of DiT's frequencies is the polynomial through the
    nearest 8 of diffusers' (Lagrange). The embeddings agree to rounding.
    """
    half = weight.shape[1] // 2
    targets = torch.arange(half, dtype=torch.float64) * (half - 1) / half  # DiT's k in units of diffusers'
    first = (targets.long() - STENCIL // 2 + 1).clamp(0, half - STENCIL)
    nodes = first[:, None] + torch.arange(STENCIL)  # [half, STENCIL]
    matrix = torch.zeros(half, half, dtype=torch.float64)
    for index in range(STENCIL):
        others = torch.cat([nodes[:, :index], nodes[:, index + 1 :]], dim=1)
        node = nodes[:, index : index + 1]
        factor = ((targets[:, None] - others) / (node - others)).prod(dim=1, keepdim=True)
        matrix.scatter_(1, node, factor)
    cosines, sines = weight.double().chunk(2, dim=1)
    return torch.cat([cosines @ matrix, sines @ matrix], dim=1).to(weight.dtype)


def _canonical(keys: Iterable[str]) -> dict[str, str]:
    """key -> name; early checkpoints of REPA count the blocks after the alignment on their own."""
    names = transformer_names(keys)
    first = {found[1] for name in names.values() if (found := re.match(r"blocks\.(\d+)\.", name))}

    def joined(name: str) -> str:
        return re.sub(r"^decoder_blocks\.(\d+)\.", lambda found: f"blocks.{len(first) + int(found[1])}.", name)

    return {key: joined(name) for key, name in names.items()}


def _place(name: str) -> str:
    for pattern, place in _PLACES:
        if re.match(pattern, name):
            return re.sub(f"^{pattern}", place, name)
    return name  # found to be unexpected later


def _spread(place: str, weight: Tensor, num_layers: int) -> list[tuple[str, Tensor]]:
    """(name, tensor) of every place that one tensor goes to."""
    if "{q,k,v}" in place:
        parts = zip("qkv", weight.tensor_split(3), strict=True)
        return [(place.replace("{q,k,v}", name), part) for name, part in parts]
    if "*" in place:
        return [(place.replace("*", str(layer)), weight) for layer in range(num_layers)]
    return [(place, weight)]


def _config(sizes: Sizes, num_attention_heads: int | None) -> Arguments:
    heads = num_attention_heads or HEADS.get((sizes.hidden_size, sizes.num_layers))
    if heads is None:
        raise ConversionError(
            f"Weights do not show the number of heads, and {sizes.num_layers} layers of width {sizes.hidden_size} "
            f"are no published size. Pass num_attention_heads, as in the code of its training."
        )
    if sizes.hidden_size % heads:
        raise ConversionError(f"{heads} heads do not divide the width {sizes.hidden_size}. Pass another number.")
    return {
        "num_attention_heads": heads,
        "attention_head_dim": sizes.hidden_size // heads,
        "in_channels": sizes.in_channels,
        "out_channels": sizes.out_channels,
        "num_layers": sizes.num_layers,
        "sample_size": sizes.grid * sizes.patch_size,
        "patch_size": sizes.patch_size,
        "num_embeds_ada_norm": sizes.num_classes,
        "norm_eps": 1e-6,  # DiT's; diffusers' default is 1e-5
    }


def _check_no_qk_norm(by_name: Mapping[str, Tensor]) -> None:
    norms = [name for name in by_name if ".attn.q_norm." in name or ".attn.k_norm." in name]
    if norms:
        raise ConversionError(
            f"This model norms queries and keys ({norms[0]} and {len(norms) - 1} more), which DiTTransformer2DModel "
            f"cannot do. Left out, the attention would be another function. Take a checkpoint without qk_norm."
        )


def _check_positions(by_name: Mapping[str, Tensor], sizes: Sizes) -> str:
    """Why the table can be dropped."""
    far = position_difference(by_name, sizes)
    if far > rounding(by_name["pos_embed"], DRIFT):
        raise ConversionError(
            f"pos_embed differs by {far:.2g} from the table that DiTTransformer2DModel computes for a "
            f"{sizes.grid} x {sizes.grid} grid, which would take its place. Only models with DiT's fixed sines and "
            f"cosines can be converted."
        )
    away = f"equal within {EQUAL:g}" if far <= EQUAL else f"within {far:.2g}, what a running average or dtype rounds"
    return f"position table, which the model computes; {away}"


def _notes(kind: str, sizes: Sizes, config: Arguments) -> list[str]:
    time = (
        "diffusers' frequencies are k / 127, DiT's k / 128: outputs differ from DiT's own as those of every DiT in "
        "diffusers do, the hub's included; for DiT's own set block.norm1.emb.time_proj.downscale_freq_shift = 0 for "
        "every block in transformer.transformer_blocks after loading"
        if kind == DIT
        else "t_embedder.mlp.0.weight is interpolated to diffusers' frequencies; give times in [0, 1] only"
    )
    return [
        f"read from keys and shapes: {sizes}; heads: {config['num_attention_heads']}",
        f"convention: {CONVENTIONS[kind]}",
        f"time embedding: {time}",
    ]
