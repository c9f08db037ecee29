"""`davae convert`: weights that people already have, as a diffusers folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from davae.convert.folder import convert


def work(sources: list[Path], folder: Path, say: Callable[[str], None], **options: Any) -> None:
    """Convert, then say what became of the keys and how to load the result.

    Args:
        sources: one checkpoint, or the two files of a tiny autoencoder.
        folder: to be written.
        say: prints one message.
        options: see `davae.convert.folder.convert`.
    """
    report = convert(sources, folder, **options)
    say(str(report))
    home = "davae" if report.model in ("AutoencoderDA", "AutoencoderTAEF2") else "diffusers"
    say(f'wrote {folder}; load it with {home}.{report.model}.from_pretrained("{folder}")')
