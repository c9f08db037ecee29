"""Checkpoints as trainings write them: current weights, their running average, and the state of the training."""

from argparse import Namespace
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor

from davae.convert.keys import ConversionError
from davae.convert.unpickle import Content, Source, read_content, source_of

CHOICES = ("ema", "model")
"""Weights to choose from: the running average, which samples are drawn with, and the current ones."""
SETS = (*CHOICES, "state_dict")
"""Entries that hold weights; the first that a file has is taken."""


def read_weights(path: Path, choice: str | None = None) -> tuple[Source, tuple[str, ...]]:
    """(one set of weights of a checkpoint, notes on which one). A file may hold nothing else, or several sets.

    Args:
        path: safetensors, or a pickle of tensors, plain values and the settings that argparse made.
        choice: "ema" or "model"; None takes the average, or the current weights where there is no average.

    Raises:
        ConversionError: the file cannot be read, or lacks the weights that were chosen.
    """
    with torch.serialization.safe_globals([Namespace]):  # attributes and nothing else: it runs no code of the file
        content = read_content(path)
    entries = {name: content.get(name) for name in SETS}
    sets = {name: entry for name, entry in entries.items() if _has_tensors(entry)}
    _check_choice(path, sets, choice)
    taken = choice or next(iter(sets), None)
    if taken is None:
        return source_of(path, content), ()
    dropped = {str(name): _reason(name, sets, taken) for name in content if name != taken}
    return source_of(path, sets[taken], dropped), _notes(taken, choice)


def _has_tensors(entry: object) -> TypeGuard[Content]:
    return isinstance(entry, Mapping) and any(isinstance(value, Tensor) for value in entry.values())


def _check_choice(path: Path, sets: Collection[str], choice: str | None) -> None:
    if choice is None or choice in sets:
        return
    if choice not in CHOICES:
        raise ConversionError(f"Unknown weights {choice!r}; allowed: {', '.join(CHOICES)}.")
    raise ConversionError(
        f"{path} has no weights '{choice}'; it has {', '.join(sets) or 'one set of weights without a name'}. "
        f"Choose one that it has, or none."
    )


def _reason(name: object, sets: Collection[str], taken: str) -> str:
    return f"other weights of the training, '{taken}' was taken" if name in sets else "state of a training"


def _notes(taken: str, choice: str | None) -> tuple[str, ...]:
    if taken == "ema":
        return ("weights: 'ema', the running average",)
    if taken == "model":
        why = "" if choice else "; the file has no running average ('ema')"
        return (f"weights: 'model', as the training left them{why}",)
    return ()
