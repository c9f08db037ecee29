"""What a trained structured autoencoder makes of images: spectra, alignment and correlations of its latent.

One pass over the images gathers power spectra and second moments; everything that is measured follows from these, so
no latent has to be kept.
"""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from davae.core.layout import LatentLayout
from davae.core.moments import FeatureMoments
from davae.core.observer import Observer
from davae.core.pixels import uint8_to_signed
from davae.core.randomness import permutation
from davae.data.image_source import ImageSource
from davae.evaluate.agreement import (
    RIDGE,
    SecondMoments,
    alignment,
    base_and_detail_components,
    channels_of,
    correlation,
    linear_probe,
    mean_correlations,
)
from davae.evaluate.results import Measurement
from davae.evaluate.spectrum import NYQUIST, MeanPower, centroid, energy_above, frequencies
from davae.models.autoencoder import AutoencoderDA

_UNITS = "the transformer's: the pair's scaling, then the detail statistics"
_SPECTRUM = {
    "spectrum": "|FFT|^2 of each channel less its mean over the image, mean over channels and images; no window",
    "range": "frequencies in cycles per latent position, Nyquist 0.5, the corners beyond it included",
}


class LatentStatistics:
    """Streamed statistics of structured latents, over all positions of all images.

    Args:
        layout: of the latents.
    """

    def __init__(self, layout: LatentLayout) -> None:
        self.layout = layout
        self.has_groups = layout.detail_channels >= layout.base_channels
        self._all, self._fit, self._judge = (FeatureMoments(layout.channels) for _ in range(3))
        self._pair = FeatureMoments(2 * layout.base_channels)
        self._power = MeanPower()

    def update(self, raw: Tensor, normalised: Tensor, in_fit: Tensor) -> None:
        """Add a batch.

        Args:
            raw: [B, C + D, h, w], posterior means, as the alignment loss sees them.
            normalised: the same latents in the transformer's units.
            in_fit: bool [B], whether an image belongs to the half on which probes are fitted.
        """
        self._power.update(normalised)
        self._all.update(_vectors(normalised))
        for moments, rows in ((self._fit, normalised[in_fit]), (self._judge, normalised[~in_fit])):
            if len(rows):
                moments.update(_vectors(rows))
        if self.has_groups:
            base, detail = self.layout.split(raw)
            self._pair.update(_vectors(torch.cat([base, self.layout.group_mean(detail)], dim=1)))

    @property
    def power(self) -> Tensor:
        """2-D power of each channel in the transformer's units, [C + D, h, w]."""
        return self._power.power

    @property
    def moments(self) -> SecondMoments:
        """Of all images, in the transformer's units, [C + D]."""
        return SecondMoments.of(self._all)

    @property
    def halves(self) -> tuple[SecondMoments, SecondMoments]:
        """Of the images to fit on and of those to judge on, in the transformer's units."""
        return SecondMoments.of(self._fit), SecondMoments.of(self._judge)

    @property
    def pair(self) -> SecondMoments:
        """Of the raw base channels and the grouped detail means, [2 C]; only with D >= C."""
        return SecondMoments.of(self._pair)


def gather(
    autoencoder: AutoencoderDA,
    source: ImageSource,
    size: int,
    batch_size: int,
    observer: Observer,
    seed: int = 0,
    shown: int = 6,
) -> tuple[LatentStatistics, Tensor]:
    """Encode a source once.

    Args:
        autoencoder: trained and calibrated.
        source: at least 2 images.
        size: side, pixels.
        batch_size: images at once.
        observer: hears of every batch.
        seed: of the halves for fitting and judging probes.
        shown: images whose latents are kept.

    Returns:
        Statistics, and the first latents in the transformer's units, float32 [shown, C + D, h, w].
    """
    if len(source) < 2:
        raise ValueError(f"Probes are fitted on one half of the images and judged on the other; got {len(source)}.")
    in_fit = torch.zeros(len(source), dtype=torch.bool)
    in_fit[permutation(seed, "probe", 0, len(source))[: len(source) // 2]] = True
    statistics, kept, done = LatentStatistics(autoencoder.layout), [], 0
    for raw, normalised in _encoded(autoencoder, source, size, batch_size):
        statistics.update(raw, normalised, in_fit[done : done + len(raw)])
        if done < shown:
            kept.append(normalised[: shown - done])
        done += len(raw)
        observer.advance(done)
    return statistics, torch.cat(kept)


def measure_latents(
    statistics: LatentStatistics, protocol: Mapping[str, object], name: str = ""
) -> tuple[list[Measurement], list[str]]:
    """The numbers of one autoencoder.

    Args:
        statistics: of its latents.
        protocol: of the images (source, count, size, seed).
        name: put before every row where several autoencoders share the tables; "" for one.

    Returns:
        Measurements, and a sentence for everything that could not be measured.
    """
    shared = {**protocol, "latent": "posterior means", "grid": "{} x {}".format(*statistics.power.shape[1:])}
    measurements, notes = [], []
    for part in (_spectrum, _alignment, _channels, _probes, _correlations, _components):
        for number in part(statistics):
            row, column = f"{name}: {number.row}" if name else number.row, number.column
            if part is _channels:  # a long table: autoencoders side by side
                row, column = number.row, name or column
            if math.isfinite(number.value):
                how = {**shared, **number.protocol}
                measurements.append(Measurement(number.group, row, column, number.value, number.unit, "", how))
            else:
                notes.append(f"{number.group}, {row}, {column} is undefined: what it divides by has no variance.")
    if not statistics.has_groups:
        counts = f"{statistics.layout.detail_channels} for {statistics.layout.base_channels}"
        of = f" of {name}" if name else ""
        notes.append(f"Alignment{of} is not measured: there are fewer detail than base channels ({counts}).")
    return measurements, notes


def white_noise(height: int, width: int, protocol: Mapping[str, object]) -> list[Measurement]:
    """The spectrum of a latent without any structure on a grid, to read the others by."""
    power = (frequencies(height, width) > 0).double()  # less its mean, as the others
    grid = f"{height} x {width}"
    how = {**protocol, **_SPECTRUM, "grid": grid, "white noise": "computed, not drawn"}
    return [
        Measurement("Power spectrum", f"white noise, {grid}", column, value, unit, "", how)
        for column, value, unit in _shares(power)
    ]


class _Number(NamedTuple):
    group: str
    row: str
    column: str
    value: float
    unit: str
    protocol: dict[str, str]


def _spectrum(statistics: LatentStatistics) -> Iterator[_Number]:
    for row, channels in zip(("base", "detail"), channels_of(statistics.layout), strict=True):
        for column, value, unit in _shares(statistics.power[channels].mean(dim=0)):
            yield _Number("Power spectrum", row, column, value, unit, {**_SPECTRUM, "units": _UNITS})


def _shares(power: Tensor) -> list[tuple[str, float, str]]:
    return [
        ("energy above half of Nyquist", 100 * energy_above(power, NYQUIST / 2), "%"),
        ("centroid", centroid(power), "cycles / position"),
    ]


def _alignment(statistics: LatentStatistics) -> Iterator[_Number]:
    if not statistics.has_groups:
        return
    found = alignment(statistics.pair)
    protocol = {
        "compared": "each base channel with the mean of its group of detail channels, raw, as in the alignment loss",
        "r": "Pearson correlation over positions and images; the mean is over base channels that have one",
        "explained variance": "1 - variance of the difference / variance of the base, both summed over channels",
    }
    for column, value in (
        ("mean r", float(found.channels.nanmean())),
        ("r of all elements", found.elements),
        ("explained variance", found.explained),
        ("MSE", found.mse),
    ):
        yield _Number("Alignment", "grouped detail mean", column, value, "", protocol)


def _channels(statistics: LatentStatistics) -> Iterator[_Number]:
    if not statistics.has_groups:
        return
    protocol = {"r": "Pearson correlation of a base channel with the mean of its group, over positions and images"}
    for channel, value in enumerate(alignment(statistics.pair).channels.tolist()):
        yield _Number("Alignment of each base channel", f"channel {channel}", "r", value, "", protocol)


def _probes(statistics: LatentStatistics) -> Iterator[_Number]:
    fit, judge = statistics.halves
    base, detail = channels_of(statistics.layout)
    protocol = {
        "probe": f"ridge regression at each position, penalty {RIDGE:g} mean variances of the inputs",
        "split": "fitted on a random half of the images, R^2 on the other half",
        "R^2": "1 - squared error / variance, both summed over the predicted channels",
        "units": _UNITS,
    }
    for row, inputs, targets in (("base from detail", detail, base), ("detail from base", base, detail)):
        value = linear_probe(fit, judge, inputs, targets)
        yield _Number("Linear probe", row, "R^2 on other images", value, "", protocol)


def _correlations(statistics: LatentStatistics) -> Iterator[_Number]:
    blocks = mean_correlations(correlation(statistics.moments.cov), statistics.layout)
    protocol = {"r": "Pearson correlation of two channels over positions and images"}
    for row, value in blocks.items():
        yield _Number("Correlation of channels", row, "mean |r|", value, "", protocol)


def _components(statistics: LatentStatistics) -> Iterator[_Number]:
    parts = base_and_detail_components(statistics.moments, statistics.layout)
    protocol = {
        "components": "of the covariance over positions and images, base and detail each on their own; no t-SNE",
        "units": _UNITS,
    }
    for row, part in zip(("base", "detail"), parts, strict=True):
        yield _Number("Principal components", row, "variance in the first 3", 100 * part.share, "%", protocol)


@torch.no_grad()
def _encoded(
    autoencoder: AutoencoderDA, source: ImageSource, size: int, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(source), batch_size):
        pixels = source.images(range(start, min(start + batch_size, len(source))), size)
        images = uint8_to_signed(pixels).contiguous()  # channels last would round otherwise, and numbers move
        base, mean, _ = autoencoder.moments(images.to(autoencoder.device))
        raw = autoencoder.layout.join(base, mean).float()
        yield raw.cpu(), autoencoder.raw_scaling.normalise(raw).cpu()


def _vectors(latent: Tensor) -> Tensor:
    """[B, K, h, w] -> [B h w, K]."""
    return latent.movedim(1, -1).flatten(0, -2)
