"""Checkpoints as trainings write them: current weights, their running average, and the state of the training."""

from argparse import Namespace
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from davae.convert.keys import ConversionError
from davae.convert.unpickle import Content, Source, read_content, source_of

CHOICES = ("ema", "model")
"""Weights to choose from: the running average, which samples are drawn with, and the current ones."""
ENTRIES = {
    "ema": ("ema", "ema_state_dict", "ema_model", "model_ema", "params_ema"),
    "model": ("model", "model_state_dict", "params", "module", "net", "network", "vae", "autoencoder", "generator"),
    "state_dict": ("state_dict",),
}
"""Set of weights -> the names of its entry in a file; the first set that a file has is taken."""
DEPTH = 4
"""Entries inside entries that are looked into."""


def read_weights(path: Path, choice: str | None = None) -> tuple[Source, tuple[str, ...]]:
    """(one set of weights of a checkpoint, notes on which one). A file may hold nothing else, or several, nested.

    Args:
        path: safetensors, or a pickle of tensors, plain values and the settings that argparse made.
        choice: "ema" or "model"; None takes the average, or the current weights where there is no average.

    Raises:
        ConversionError: the file cannot be read, or lacks the weights that were chosen.
    """
    with torch.serialization.safe_globals([Namespace]):  # attributes and nothing else: it runs no code of the file
        content = read_content(path)
    outermost, asked = _sets(content), choice
    dropped: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    for _ in range(DEPTH):
        sets = _sets(content)
        if not sets:
            break
        taken = asked if asked in sets else next(iter(sets))
        asked = None if taken == asked else asked
        dropped |= {str(name): _reason(name, sets, taken) for name in content if name != sets[taken]}
        notes = notes or _notes(taken, choice)
        content = cast(Content, content[sets[taken]])
    _check_choice(path, outermost, asked)
    return source_of(path, content, dropped), notes


def _sets(content: Content) -> dict[str, str]:
    """Set of weights -> the name of the entry that holds it."""
    found = {
        kind: next((name for name in names if _holds_weights(content.get(name), DEPTH)), None)
        for kind, names in ENTRIES.items()
    }
    return {kind: name for kind, name in found.items() if name is not None}


def _holds_weights(entry: object, depth: int) -> bool:
    """Whether an entry is a set of weights, or has an entry of a known name that is one."""
    if not isinstance(entry, Mapping) or not depth:
        return False
    if any(isinstance(value, Tensor) for value in entry.values()):
        return True
    return any(_holds_weights(entry.get(name), depth - 1) for names in ENTRIES.values() for name in names)


def _check_choice(path: Path, sets: Collection[str], choice: str | None) -> None:
    if choice is None:
        return
    if choice not in CHOICES:
        raise ConversionError(f"Unknown weights {choice!r}; allowed: {', '.join(CHOICES)}.")
    raise ConversionError(
        f"{path} has no weights '{choice}'; it has {', '.join(sets) or 'one set of weights without a name'}. "
        f"Choose one that it has, or none."
    )


def _reason(name: object, sets: Mapping[str, str], taken: str) -> str:
    return f"other weights of the training, '{taken}' was taken" if name in sets.values() else "state of a training"


def _notes(taken: str, choice: str | None) -> tuple[str, ...]:
    if taken == "ema":
        return ("weights: 'ema', the running average",)
    if taken == "model":
        why = "" if choice else "; the file has no running average ('ema')"
        return (f"weights: 'model', as the training left them{why}",)
    return ()
