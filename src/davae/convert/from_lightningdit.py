"""LightningDiT checkpoints (hustvl/LightningDiT, and the authors' ImageNet branch) -> `davae.LightningDiT`.

Names are davae's already. What is not in the weights comes from the caller and is checked against them: above all
whether queries and keys are normed, which changes the function and which a loader that forgives missing keys
overlooks.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from davae.convert.keys import Arguments, ConversionError, ConversionReport, fit, foreign
from davae.convert.transformer import (
    EQUAL,
    Sizes,
    difference,
    position_difference,
    rounding,
    sizes_of,
    transformer_names,
)
from davae.models.embeddings import rotary_tables
from davae.models.lightningdit import LIGHTNINGDIT_SIZES, LightningDiT, qk_norm_conflict

KIND = "lightningdit"
TABLES = ("feat_rope.freqs_cos", "feat_rope.freqs_sin")
_PARTS = {
    "RMSNorm": "blocks.0.norm1.weight",
    "SwiGLU": "blocks.0.mlp.w12.weight",
}
"""What every published model has, and a key that shows it."""


def recognises(keys: Iterable[str]) -> bool:
    """Whether the keys are of this layout, wrapped or not."""
    names = set(transformer_names(keys).values())
    return "x_embedder.proj.weight" in names and bool(names & {*TABLES, *_PARTS.values()})


def convert_lightningdit(
    state: Mapping[str, Tensor], expected: Mapping[str, Any] | None = None
) -> tuple[LightningDiT, ConversionReport]:
    """A `davae.LightningDiT` with these weights; its config is read from keys and shapes.

    Args:
        state: one set of weights.
        expected: arguments of `LightningDiT` that the caller knows, for example the config of a model that these
            weights are to start; the weights must agree with all of them. What diffusers adds to a config is passed
            over. `num_attention_heads` is taken from here where the weights have no rotary tables, which show it.

    Raises:
        ConversionError: keys are missing, unexpected or misshapen, the model is of another architecture, or not
            what was expected.
    """
    expected = {name: value for name, value in (expected or {}).items() if not name.startswith("_")}
    names = transformer_names(state)
    by_name = {name: state[key] for key, name in names.items()}
    _check_parts(by_name)
    sizes = sizes_of(by_name)
    config = _config(by_name, sizes, expected)
    _check_expected(by_name, config, expected)
    head_dim = sizes.hidden_size // config["num_attention_heads"]
    computed = dict(zip(TABLES, rotary_tables(head_dim, sizes.grid), strict=True))
    for name in computed.keys() & by_name.keys():
        _check_rotary(name, by_name[name], computed[name])
    dropped = {
        key: "rotary table, which the model computes; equal to rounding"
        for key, name in names.items()
        if name in computed
    } | foreign(state, names)
    places = {key: name for key, name in names.items() if key not in dropped}
    with torch.device("meta"):
        model = LightningDiT(**config)
    tensors = {**state, **{f"computed:{name}": table for name, table in computed.items()}}
    names = places | {f"computed:{name}": name for name in computed}
    model, report = fit(KIND, model, tensors, names, dropped, _notes(by_name, sizes, config))
    return model, replace(report, renamed={key: name for key, name in report.renamed.items() if key in state})


def check_qk_norm(keys: Iterable[str], expected: bool) -> None:
    """Refuse weights that norm queries and keys for a model that does not, or the other way round.

    Args:
        keys: of the weights, wrapped or not.
        expected: `qk_norm` of the model that they are for.

    Raises:
        ConversionError: they do not go together.
    """
    found = _norms_qk(transformer_names(keys).values())
    if found == expected:
        return
    raise ConversionError(qk_norm_conflict(expected))


def _norms_qk(names: Iterable[str]) -> bool:
    return any(name.endswith((".attn.q_norm.weight", ".attn.k_norm.weight")) for name in names)


def _check_parts(by_name: Mapping[str, Tensor]) -> None:
    absent = [part for part, name in _PARTS.items() if name not in by_name]
    if absent:
        raise ConversionError(
            f"This LightningDiT was built without {' and without '.join(absent)} "
            f"({', '.join(_PARTS[part] for part in absent)} missing). davae.LightningDiT has SwiGLU, RMSNorm and "
            f"rotary positions, as every published model; other builds cannot be converted."
        )


def _config(by_name: Mapping[str, Tensor], sizes: Sizes, expected: Mapping[str, Any]) -> Arguments:
    modulation = by_name.get("blocks.0.adaLN_modulation.1.weight")
    return {
        "sample_size": sizes.grid * sizes.patch_size,
        "patch_size": sizes.patch_size,
        "in_channels": sizes.in_channels,
        "hidden_size": sizes.hidden_size,
        "num_layers": sizes.num_layers,
        "num_attention_heads": _heads(by_name, sizes, expected),
        "mlp_ratio": 4.0,
        "num_classes": sizes.num_classes,
        "qk_norm": _norms_qk(by_name),
        # Without shifts four vectors of modulation are left of six.
        "adaln_shift": modulation is None or len(modulation) != 4 * sizes.hidden_size,
    }


def _heads(by_name: Mapping[str, Tensor], sizes: Sizes, expected: Mapping[str, Any]) -> int:
    table = by_name.get(TABLES[0])
    heads: int | None = expected.get("num_attention_heads")
    if table is not None:
        heads = sizes.hidden_size // table.shape[-1]
    if heads is None:
        known = [
            f"{arguments['num_attention_heads']} (LightningDiT-{name})"
            for name, arguments in LIGHTNINGDIT_SIZES.items()
            if (arguments["hidden_size"], arguments["num_layers"]) == (sizes.hidden_size, sizes.num_layers)
        ]
        raise ConversionError(
            "These weights have no rotary tables (feat_rope). Either the model has no rotary positions, and cannot "
            "be converted; or the file was saved without buffers, and the number of heads, which the tables show, "
            f"has to be given: pass num_attention_heads, {known[0] if known else 'as in the config of its training'}."
        )
    if heads < 1 or sizes.hidden_size % (4 * heads):
        raise ConversionError(
            f"Heads must divide the width {sizes.hidden_size} into multiples of 4 channels; got {heads} heads."
        )
    return heads


def _check_expected(by_name: Mapping[str, Tensor], config: Arguments, expected: Mapping[str, Any]) -> None:
    unknown = sorted(expected.keys() - config.keys())
    if unknown:
        raise ConversionError(f"LightningDiT has no {', '.join(unknown)}; its arguments: {', '.join(config)}.")
    if "qk_norm" in expected:
        check_qk_norm(by_name, expected["qk_norm"])
    wrong = [f"{name} {config[name]}, expected {value}" for name, value in expected.items() if config[name] != value]
    if wrong:
        raise ConversionError(f"These weights are not of the expected model: {'; '.join(wrong)}.")


def _check_rotary(name: str, stored: Tensor, computed: Tensor) -> None:
    far = difference(stored, computed)
    if far > rounding(stored, EQUAL):
        raise ConversionError(
            f"{name} {list(stored.shape)} differs by {far:.2g} from davae.LightningDiT's rotary table "
            f"{list(computed.shape)}: this model turns queries and keys in another way, and cannot be converted."
        )


def _notes(by_name: Mapping[str, Tensor], sizes: Sizes, config: Arguments) -> list[str]:
    far = position_difference(by_name, sizes)
    table = "equal to" if far <= EQUAL else f"loaded as it is, up to {far:.2g} from"
    return [
        f"read from keys and shapes: {sizes}, {config['num_attention_heads']} heads, "
        f"qk_norm {config['qk_norm']}, adaln_shift {config['adaln_shift']}",
        f"position table: {table} the computed one",
        "convention: velocity data - noise, time in [0, 1], 1 = data",
    ]
