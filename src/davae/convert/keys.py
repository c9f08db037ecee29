"""Every key of a checkpoint is accounted for: loaded, renamed, dropped with a reason, or an error that names it."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Arguments = dict[str, Any]
"""Of a model's constructor, as its config.json holds them."""
Model = TypeVar("Model", bound=nn.Module)

HOLDERS = (
    *("model", "net", "network", "vae", "autoencoder", "first_stage_model", "transformer", "diffusion_model"),
    *("dit", "generator", "ema", "ema_model"),
)
"""Names under which trainings and larger models hold a model."""
SHOWN = 4
"""Keys that a message names before it counts the rest."""


class ConversionError(ValueError):
    """Weights that cannot be converted; the message says why and what to do."""


@dataclass(frozen=True)
class ConversionReport:
    """What happened to every key of the source.

    Args:
        kind: layout of the source.
        model: class of the converted model.
        loaded: keys taken over under their own names.
        renamed: old -> new. Names from a second file carry its part in front ("base:", "encoder:", "decoder:").
        dropped: key -> reason.
        notes: what the reader should know beside the keys, for example where the latent scaling comes from.
    """

    kind: str
    model: str
    loaded: tuple[str, ...]
    renamed: Mapping[str, str]
    dropped: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.renamed) + len(self.dropped)
        lines = [
            f"{self.kind} -> {self.model}: {total} keys; {len(self.loaded)} loaded as they are, "
            f"{len(self.renamed)} renamed, {len(self.dropped)} dropped"
        ]
        lines += [f"  dropped {count}: {reason}" for reason, count in Counter(self.dropped.values()).items()]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def names_of(keys: Iterable[str], marks: Callable[[str], bool]) -> dict[str, str]:
    """key -> its name inside the model, without what wraps it, for every key that is of the model.

    DDP puts `module.` before a name and torch.compile `_orig_mod.`, trainings one or more of `HOLDERS`, in any order.

    Args:
        keys: of a checkpoint.
        marks: whether a name is one that shows the model's layout; where none is, all keys are taken for its own.

    Raises:
        ConversionError: there are several such models.
    """
    bare = {key: re.sub(r"(?<![^.])(module|_orig_mod)\.", "", key) for key in keys}
    places = sorted({place for name in bare.values() if (place := _place_of(name, marks)) is not None})
    if len(places) > 1:
        raise ConversionError(
            f"The checkpoint holds several models of one layout: under {', '.join(repr(place) for place in places)}. "
            f"Save the weights of one of them alone."
        )
    place = places[0] if places else ""
    return {key: name.removeprefix(place) for key, name in bare.items() if name.startswith(place)}


def foreign(keys: Iterable[str], names: Mapping[str, str]) -> dict[str, str]:
    """key -> reason why it is dropped, for the keys that `names_of` left out."""
    return dict.fromkeys((key for key in keys if key not in names), "not of this model")


def fit(
    kind: str,
    model: Model,
    state: Mapping[str, Tensor],
    names: Mapping[str, str],
    dropped: Mapping[str, str],
    notes: Sequence[str] = (),
) -> tuple[Model, ConversionReport]:
    """Give a model built on the meta device its weights, all of them or none.

    Weights keep their dtype, fp64 becomes fp32. They are copied, because checkpoints hold views of larger storages.

    Args:
        kind: layout of the source, for the report.
        model: a network whose tensors are on the meta device.
        state: the source.
        names: source key -> the model's key, for every key of the source that is not dropped.
        dropped: source key -> reason.
        notes: see `ConversionReport`.

    Raises:
        ConversionError: keys are missing, unexpected, misshapen, or two claim the same place.
    """
    expected = model.state_dict()
    problems = _problems(expected, state, names)
    if problems:
        raise ConversionError(
            f"These weights are no {type(model).__name__} of the '{kind}' layout: {'; '.join(problems)}. "
            f"Check that the file is complete and of that kind."
        )
    model.load_state_dict({new: _stored(state[old]) for old, new in names.items()}, assign=True)
    loaded = tuple(old for old, new in names.items() if old == new)
    renamed = {old: new for old, new in names.items() if old != new}
    return model.eval(), ConversionReport(kind, type(model).__name__, loaded, renamed, dict(dropped), tuple(notes))


def sort_keys(
    names: Mapping[str, str], extras: Mapping[str, str], places: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """(key -> name with its place, key -> reason why it is dropped), by the beginning of a key's name.

    Args:
        names: key -> its name in the layout.
        extras: prefix -> reason: what no model needs.
        places: prefix -> prefix in the model; other names stay.
    """
    kept: dict[str, str] = {}
    dropped: dict[str, str] = {}
    for key, name in names.items():
        extra = next((prefix for prefix in extras if name.startswith(prefix)), None)
        if extra is not None:
            dropped[key] = extras[extra]
            continue
        prefix = next((prefix for prefix in places if name.startswith(prefix)), None)
        kept[key] = name if prefix is None else places[prefix] + name.removeprefix(prefix)
    return kept, dropped


def some(keys: Sequence[str]) -> str:
    """The first few keys and how many more there are."""
    rest = len(keys) - SHOWN
    return ", ".join(keys[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def shape_of(state: Mapping[str, Tensor], key: str) -> tuple[int, ...]:
    """Shape [out, in, height, width] of a convolution that the config is read from.

    Raises:
        ConversionError: it is missing, or no convolution's weight.
    """
    if key not in state:
        raise ConversionError(f"The weights lack {key}, which the config is read from. Is the file complete?")
    shape = tuple(state[key].shape)
    if len(shape) != 4:
        raise ConversionError(
            f"{key} has the shape {list(shape)}; expected a convolution's [out, in, height, width]."
        )
    return shape


def _place_of(name: str, marks: Callable[[str], bool]) -> str | None:
    """The holders before a name that shows the layout; None for other names."""
    place = ""
    while not marks(name):
        holder, _, name = name.partition(".")
        if holder not in HOLDERS:
            return None
        place += f"{holder}."
    return place


def _problems(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], names: Mapping[str, str]) -> list[str]:
    places = Counter(names.values())
    rows = {
        "missing": [key for key in expected if key not in places],
        "unexpected": [old for old, new in names.items() if new not in expected],
        "claimed twice": [new for new, count in places.items() if count > 1],
        "misshapen": [
            f"{old} {list(state[old].shape)}, expected {list(expected[new].shape)}"
            for old, new in names.items()
            if new in expected and state[old].shape != expected[new].shape
        ],
    }
    return [f"{len(keys)} {what} ({some(keys)})" for what, keys in rows.items() if keys]


def _stored(tensor: Tensor) -> Tensor:
    dtype = torch.float32 if tensor.dtype == torch.float64 else tensor.dtype
    return tensor.detach().to(dtype).clone(memory_format=torch.contiguous_format)
