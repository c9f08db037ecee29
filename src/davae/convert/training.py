"""Checkpoints as trainings write them: current weights, their running average, and the state of the training."""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from davae.convert.keys import ConversionError, some
from davae.convert.source import Source, read_content

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
    sets = [name for name in SETS if _has_tensors(content.get(name))]
    _check_choice(path, sets, choice)
    taken = choice or (sets[0] if sets else None)
    if taken is None:
        return _source(path, content, {}), ()
    dropped = {str(name): _reason(name, sets, taken) for name in content if name != taken}
    return _source(path, content[taken], dropped), _notes(taken, choice)


def _has_tensors(entry: Any) -> bool:
    return isinstance(entry, Mapping) and any(isinstance(value, Tensor) for value in entry.values())


def _check_choice(path: Path, sets: list[str], choice: str | None) -> None:
    if choice is None or choice in sets:
        return
    if choice not in CHOICES:
        raise ConversionError(f"Unknown weights {choice!r}; allowed: {', '.join(CHOICES)}.")
    raise ConversionError(
        f"{path} has no weights '{choice}'; it has {', '.join(sets) or 'one set of weights without a name'}. "
        f"Choose one that it has, or none."
    )


def _reason(name: Any, sets: list[str], taken: str) -> str:
    return f"other weights of the training, '{taken}' was taken" if name in sets else "state of a training"


def _notes(taken: str, choice: str | None) -> tuple[str, ...]:
    if taken == "ema":
        return ("weights: 'ema', the running average",)
    if taken == "model":
        why = "" if choice else "; the file has no running average ('ema')"
        return (f"weights: 'model', as the training left them{why}",)
    return ()


def _source(path: Path, content: Mapping[Any, Any], dropped: Mapping[str, str]) -> Source:
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        raise ConversionError(f"{path} has no weights; its entries: {some([str(key) for key in content]) or 'none'}.")
    strangers = {str(key): "not a tensor" for key in content if key not in tensors}
    return Source(path, tensors, {**dropped, **strangers})
