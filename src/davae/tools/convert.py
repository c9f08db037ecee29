"""`davae convert`: weights that people already have, as a diffusers folder; a transformer also as a whole pair."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler

from davae.convert.dispatch import convert
from davae.convert.keys import ConversionError
from davae.convert.kl import scaling_note
from davae.convert.paired_autoencoder import load_paired_autoencoder
from davae.convert.unpickle import read_statistics
from davae.core.flow import sigma_shift
from davae.models.lightningdit import LightningDiT
from davae.sampling.lightningdit_pipeline import LightningDiTPipeline

DAVAE_CLASSES = ("AutoencoderDA", "AutoencoderTAEF2", "LightningDiT")
"""Classes of davae; the others are diffusers'."""
TIME_SHIFT = 0.3
"""Native timestep shift that LightningDiT is sampled with."""


def convert_checkpoint(
    sources: list[Path],
    folder: Path,
    say: Callable[[str], None],
    vae: Path | None = None,
    statistics: Path | None = None,
    time_shift: float | None = None,
    **options: Any,
) -> None:
    """Convert, then say what became of the keys and how to load the result.

    Args:
        sources: one checkpoint, or the two files of a tiny autoencoder.
        folder: to be written.
        say: prints one message.
        vae: of a LightningDiT, see `convert.paired_autoencoder`; the folder is then that of a pair, which recipes
            take as `pair`.
        statistics: mean and standard deviation of latent channels; with `vae` they are of its latents.
        time_shift: native timestep shift of the pair's scheduler; None is 0.3.
        options: see `davae.convert.dispatch.convert`.

    Raises:
        ConversionError: nothing was written; the message says why.
    """
    if vae is None:
        if time_shift is not None:
            raise ConversionError("A time shift is of a pair's scheduler; got one without vae. Pass both, or none.")
        report = convert(sources, folder, statistics=statistics, **options)
        say(str(report))
        home = "davae" if report.model in DAVAE_CLASSES else "diffusers"
        say(f'wrote {folder}; load it with {home}.{report.model}.from_pretrained("{folder}")')
        return
    half = load_paired_autoencoder(vae, None if statistics is None else read_statistics(statistics))
    shift = TIME_SHIFT if time_shift is None else time_shift
    scheduler = FlowMatchEulerDiscreteScheduler(shift=sigma_shift(shift))

    def pack(transformer: Any) -> tuple[LightningDiTPipeline, str]:
        note = f"pair with {type(half).__name__} of {vae.name}; {scaling_note(half.config)}; time shift {shift:g}"
        return _pair(half, transformer, scheduler), note

    say(str(convert(sources, folder, pack=pack, **options)))
    say(f'wrote {folder}; load it with davae.LightningDiTPipeline.from_pretrained("{folder}"), or give it as pair')


def _pair(vae: Any, transformer: Any, scheduler: FlowMatchEulerDiscreteScheduler) -> LightningDiTPipeline:
    if not isinstance(transformer, LightningDiT):
        raise ConversionError(
            f"A pair is an autoencoder and a LightningDiT; got a {type(transformer).__name__}. Leave vae out, and "
            f"put the parts into a pipeline of diffusers."
        )
    return LightningDiTPipeline(vae, transformer, scheduler)
