"""`davae analyze`: what the latent of a trained structured autoencoder holds, beside that of others."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from davae.core.observer import Observer, Silent
from davae.data.folder import FolderSource
from davae.data.hold_out import first
from davae.data.image_source import ImageSource
from davae.data.shards import ShardSource
from davae.data.solids import SolidsSource
from davae.evaluate import lpips
from davae.evaluate.agreement import base_and_detail_components, channels_of, correlation
from davae.evaluate.analysis import LatentStatistics, gather, measure_latents, white_noise
from davae.evaluate.hardware import hardware
from davae.evaluate.reconstruction import measure_reconstruction
from davae.evaluate.reconstruction_fid import ReconstructionFID
from davae.evaluate.results import Figure, Results
from davae.evaluate.spectrum import radial
from davae.models.autoencoder import AutoencoderDA
from davae.models.loading import load_autoencoder
from davae.recipe import load_recipe
from davae.report.figures import labelled_strip
from davae.report.latent_figures import correlation_figure, principal_colours, spectrum_figure
from davae.report.page import write_report
from davae.run.paths import distinct_names, recipe_beside, refuse_claimed

SOLIDS = "solids"
_HELD_OUT = 1_000_003  # seed of rendered images that no recipe trains on by default
_BATCH_PIXELS = 1 << 20  # of all images that are on the device at once
_SHOWN = 6


@dataclass(frozen=True)
class _Analysed:
    name: str
    statistics: LatentStatistics
    latents: Tensor  # of the images shown, in the transformer's units


def analyze(
    tokenizer: Path,
    images: str,
    out: Path,
    size: int | None = None,
    count: int = 256,
    compare: Sequence[Path] = (),
    observer: Observer | None = None,
    seed: int = 0,
) -> Path:
    """Measure, draw, and write results.json, figures/ and report.html.

    Args:
        tokenizer: folder of a trained and calibrated `AutoencoderDA`, for example `runs/NAME/tokenizer`.
        images: folder of images or of tar shards, never trained on; or "solids" for rendered ones. Images that are
            smaller than `size` are left out.
        out: folder to write; not that of a run.
        size: side of the images, pixels; None takes that of the run which made `tokenizer`.
        count: images at most, spread evenly over the set.
        compare: further autoencoders, measured on the same images.
        observer: who watches.
        seed: of the random detail, of which images probes are fitted on, and of rendered images.

    Returns:
        Path of report.html.

    Raises:
        FileNotFoundError: there is no such autoencoder.
        ValueError: an autoencoder, the size or the output folder cannot be used; the text says which and why.
    """
    observer = observer or Silent()
    refuse_claimed(out, "the analysis")
    paths = [tokenizer, *compare]
    size = _size_of_run(tokenizer) if size is None else size
    autoencoders = {name: _load(path, size) for name, path in zip(distinct_names(paths), paths, strict=True)}
    opened = _open(images, size, count, seed)
    for name, reason in opened.skipped[:10]:
        observer.say(f"skipped {name}: {reason}")
    source = first(opened, count)
    results = _measure(autoencoders, source, images, size, seed, observer, out)
    results.save(out / "results.json")
    return write_report(out)


def _measure(
    autoencoders: dict[str, AutoencoderDA],
    source: ImageSource,
    images: str,
    size: int,
    seed: int,
    observer: Observer,
    out: Path,
) -> Results:
    (out / "figures").mkdir(parents=True, exist_ok=True)
    several = len(autoencoders) > 1
    protocol = {
        "images": len(source),
        "source": images,
        "fingerprint": source.fingerprint,
        "size": size,
        "seed": seed,
    }
    batch_size = max(1, _BATCH_PIXELS // size**2)
    results, analysed, notes = Results(), [], []
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    perceptual, fid = lpips.at_hand(), ReconstructionFID.at_hand(device)
    if perceptual is not None:
        perceptual.to(device)
    for index, (name, autoencoder) in enumerate(autoencoders.items()):
        observer.begin(f"analyze: {name}", len(source))
        statistics, latents = gather(autoencoder, source, size, batch_size, observer, seed, _SHOWN)
        observer.end()
        numbers, remarks = measure_latents(statistics, protocol, name if several else "")
        analysed.append(_Analysed(name, statistics, latents))
        observer.say(f"measuring reconstruction: {name}")
        beside = None if fid is None else fid.beside()
        rebuilt = measure_reconstruction(autoencoder, source, size, batch_size, seed, _SHOWN, perceptual, beside)
        rows = [replace(m, row=f"{name}: {m.row}") if several else m for m in rebuilt.measurements]
        results.measurements += [*rows, *numbers]
        notes += remarks
        file = f"figures/reconstruction-{index}.png"
        labelled_strip(list(rebuilt.strips.items())).save(out / file)
        title = f"Reconstruction: {name}" if several else "Reconstruction"
        results.figures.append(Figure(title, _RECONSTRUCTION, file))
    for height, width in dict.fromkeys(tuple(entry.latents.shape[2:]) for entry in analysed):
        results.measurements += white_noise(height, width, protocol)
    results.figures += [
        _spectrum(analysed, out),
        _correlation(analysed, out),
        _components(analysed, rebuilt.strips["input"], out),
    ]
    for column, network in (("LPIPS", perceptual), ("rFID", fid)):
        if network is None:
            notes.append(f"{column} is left out: its weights are not on this machine.")
    results.run = {
        "name": f"Latents of {' and '.join(autoencoders)}",
        "summary": " ".join([_summary(analysed, len(source), size), *notes]),
        "hardware": hardware(),
    }
    return results


_RECONSTRUCTION = (
    "The input, the image from the whole latent, and what the same decoder makes of no detail and of random detail. "
    "Last the base decoder alone, enlarged. Where zero detail is soft and random detail is broken, the decoder reads "
    "its detail channels."
)


def _spectrum(analysed: Sequence[_Analysed], out: Path) -> Figure:
    panels = []
    for entry in analysed:
        base, detail = channels_of(entry.statistics.layout)
        panels.append((entry.name, radial(entry.statistics.power[base]), radial(entry.statistics.power[detail])))
    spectrum_figure(panels).save(out / "figures" / "spectrum.png")
    return Figure(
        "Radial power spectrum",
        "Power of the latent channels over spatial frequency, averaged over angles, channels and images; the band "
        "holds the middle 80% of the channels. A line that falls is a smooth latent, a flat line at 1 is white noise "
        "of variance 1. Detail above base on the right holds more fine structure than the base.",
        "figures/spectrum.png",
    )


def _correlation(analysed: Sequence[_Analysed], out: Path) -> Figure:
    panels = [(entry.name, correlation(entry.statistics.moments.cov), entry.statistics.layout) for entry in analysed]
    correlation_figure(panels).save(out / "figures" / "correlation.png")
    return Figure(
        "Correlation of channels",
        "Every latent channel against every other, over all positions and images: red 1, white 0, blue -1. The lines "
        "part base from detail. A coloured line from corner to corner of the mixed blocks is alignment, each base "
        "channel with the detail channels of its group; colour elsewhere off the diagonal is redundancy.",
        "figures/correlation.png",
    )


def _components(analysed: Sequence[_Analysed], inputs: Tensor, out: Path) -> Figure:
    colours = []
    for entry in analysed:
        components = base_and_detail_components(entry.statistics.moments, entry.statistics.layout)
        parts = entry.statistics.layout.split(entry.latents)
        colours.append([principal_colours(c.scores(part)) for c, part in zip(components, parts, strict=True)])
    is_shared = all(torch.equal(base, colours[0][0]) for base, _ in colours)
    rows = [("input", inputs)]
    for index, (entry, (base, detail)) in enumerate(zip(analysed, colours, strict=True)):
        if index == 0 or not is_shared:
            rows.append(("base" if is_shared else f"{entry.name}: base", base))
        rows.append((f"{entry.name}: detail" if len(analysed) > 1 else "detail", detail))
    labelled_strip(rows).save(out / "figures" / "components.png")
    return Figure(
        "Principal components",
        "The first three principal components of the base channels and of the detail channels as red, green and "
        "blue, a pixel a latent position. The axes are those of all images, not only of these; base and detail have "
        "their own, each of the detail's turned to agree with the base's. Aligned detail shows the shapes of the "
        "base; detail without structure looks like noise.",
        "figures/components.png",
    )


def _summary(analysed: Sequence[_Analysed], count: int, size: int) -> str:
    latents = []
    for entry in analysed:
        layout, (height, width) = entry.statistics.layout, entry.latents.shape[2:]
        latents.append(
            f"{entry.name} has {layout.base_channels} base and {layout.detail_channels} detail channels on "
            f"{height} x {width} positions"
        )
    return f"{count} images of {size} px: {'; '.join(latents)}."


def _load(path: Path, size: int) -> AutoencoderDA:
    config = path / "config.json"
    found = json.loads(config.read_text(encoding="utf-8")).get("_class_name") if config.is_file() else None
    if found != "AutoencoderDA":
        raise FileNotFoundError(
            f"There is no structured autoencoder in {path}: got {found or 'no config.json'}, expected AutoencoderDA. "
            f"Give the folder of a trained one, for example runs/NAME/tokenizer or PIPELINE/vae."
        )
    autoencoder: AutoencoderDA = load_autoencoder(path)
    if not autoencoder.is_calibrated:
        raise ValueError(
            f"The autoencoder in {path} is not calibrated, so its detail has no units. "
            f"Train it with 'davae train-tokenizer', which calibrates it, or call calibrate(mean, std)."
        )
    least = 2 * autoencoder.compression
    if size < least or size % autoencoder.compression:
        raise ValueError(
            f"Images of {size} px do not fit the autoencoder in {path}; allowed are multiples of "
            f"{autoencoder.compression} from {least}. Give another size."
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return autoencoder.to(device).eval()


def _size_of_run(tokenizer: Path) -> int:
    recipe = recipe_beside(tokenizer)
    size = 0 if recipe is None else load_recipe(recipe).image_size
    if size == 0:
        raise ValueError(
            f"The size of the images is not known: {tokenizer} does not lie in a run whose recipe says it. "
            f"Give --size, the side that the autoencoder was trained for."
        )
    return size


def _open(images: str, size: int, count: int, seed: int) -> ImageSource:
    if images == SOLIDS:
        return SolidsSource(count, seed + _HELD_OUT)
    if images.endswith(".tar") or any(Path(images).glob("*.tar")):
        return ShardSource(images, size)
    return FolderSource(images, size)
