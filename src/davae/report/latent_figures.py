"""Pictures of structured latents: power spectra, correlations of channels, principal components as colours.

Backgrounds are transparent and inks of middle lightness, so that a figure reads on a light and a dark page.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from davae.core.layout import LatentLayout
from davae.evaluate.spectrum import NYQUIST, RadialSpectrum
from davae.report.figures import INK, figure_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BASE, _DETAIL = "#4a7fe0", "#d4693c"  # at least 3.4:1 against white and a near-black page
_BORDER = "#1a1a1e"
_SATURATED = 2.5  # standard deviations at the end of a colour channel
_PANELS = 2  # side by side


def spectrum_figure(panels: Sequence[tuple[str, RadialSpectrum, RadialSpectrum]]) -> Image.Image:
    """Power over frequency up to Nyquist, a panel an autoencoder, on the same axes.

    A line is the mean over channels; the band holds the middle 80% of the channels.

    Args:
        panels: (title, base, detail); power is [C, R] and [D, R].
    """
    figure, grid = _grid(len(panels), (4.0, 3.0), alone=(7.0, 3.6))
    shared, ranges = grid[0], []
    for axes, (title, base, detail) in zip(grid, panels, strict=True):
        ranges += [_draw_spectrum(axes, "base", base, _BASE), _draw_spectrum(axes, "detail", detail, _DETAIL)]
        axes.axvline(NYQUIST / 2, color=INK, linewidth=0.8, linestyle=(0, (2, 3)))
        _dress(axes, title)
        if axes is not shared:
            axes.sharex(shared)
            axes.sharey(shared)
    _power_scale(shared, min(low for low, _ in ranges), max(high for _, high in ranges))
    shared.text(NYQUIST / 2, 0.02, " half of Nyquist", transform=shared.get_xaxis_transform(), fontsize=7, color=INK)
    shared.legend(frameon=False, fontsize=8, labelcolor=INK, loc="upper right", handlelength=1.2)
    return figure_image(figure)


def correlation_figure(panels: Sequence[tuple[str, Tensor, LatentLayout]]) -> Image.Image:
    """Correlation of every channel with every other as colours, blue -1, white 0, red 1, grey undefined.

    Args:
        panels: (title, Pearson correlations [C + D, C + D], layout).
    """
    from matplotlib import colormaps

    figure, grid = _grid(len(panels), (4.0, 3.7), alone=(6.0, 5.2))
    colours = colormaps["RdBu_r"].with_extremes(bad=INK)
    for axes, (title, matrix, layout) in zip(grid, panels, strict=True):
        image = axes.imshow(matrix.numpy(), cmap=colours, vmin=-1, vmax=1, interpolation="nearest")
        edge, last = layout.base_channels - 0.5, layout.channels - 0.5
        for draw in (axes.axhline, axes.axvline):
            draw(edge, color=_BORDER, linewidth=1.1)
        centres = [(edge - 0.5) / 2, (edge + last) / 2]
        axes.set_xticks(centres, ["base", "detail"])
        axes.set_yticks(centres, ["base", "detail"], rotation=90, va="center")
        axes.tick_params(colors=INK, labelsize=8, length=0)
        axes.set_title(title, loc="left", fontsize=9.5, color=INK, fontweight="bold", pad=8)
        for spine in axes.spines.values():
            spine.set_visible(False)
    bar = figure.colorbar(image, ax=grid, shrink=0.7, pad=0.02, ticks=[-1, -0.5, 0, 0.5, 1])
    bar.ax.tick_params(colors=INK, labelsize=8, length=0)
    bar.outline.set_visible(False)
    return figure_image(figure)


def principal_colours(scores: Tensor) -> Tensor:
    """Principal components as red, green and blue.

    Args:
        scores: float [B, n, h, w], n at most 3, in standard deviations; 0 is middle grey, 2.5 saturates. Colours
            without a component stay grey.

    Returns:
        uint8 [B, 3, h, w].
    """
    if scores.ndim != 4 or scores.shape[1] > 3:
        raise ValueError(f"Colours take at most 3 components [B, n, h, w]; got {tuple(scores.shape)}.")
    missing = scores.new_zeros(scores.shape[0], 3 - scores.shape[1], *scores.shape[2:])
    values = torch.cat([scores, missing], dim=1).clamp(-_SATURATED, _SATURATED) / _SATURATED
    return (127.5 * (1 + values)).round().to(torch.uint8)


def _grid(count: int, size: tuple[float, float], alone: tuple[float, float]) -> tuple["Figure", list["Axes"]]:
    """Axes of `size` inches in rows of two, or one of the size `alone`."""
    from matplotlib.figure import Figure

    columns = min(count, _PANELS)
    rows = math.ceil(count / columns)
    width, height = alone if count == 1 else (size[0] * columns, size[1] * rows)
    figure = Figure(figsize=(width, height), dpi=200, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def _draw_spectrum(axes: "Axes", label: str, spectrum: RadialSpectrum, colour: str) -> tuple[float, float]:
    """Draw a line and its band; returns the lowest and the highest power drawn."""
    shown = (spectrum.radius > 0) & (spectrum.radius <= NYQUIST)
    radius, power = spectrum.radius[shown].numpy(), spectrum.power[:, shown]
    mean = power.mean(dim=0)
    low, high = torch.quantile(power, torch.tensor([0.1, 0.9], dtype=power.dtype), dim=0)
    marker = "o" if len(radius) <= 16 else None
    axes.plot(radius, mean.numpy(), color=colour, linewidth=1.8, marker=marker, ms=3.5, label=label)
    axes.fill_between(radius, low.numpy(), high.numpy(), color=colour, alpha=0.16, linewidth=0)
    return float(torch.minimum(low, mean).min()), float(torch.maximum(high, mean).max())


def _power_scale(axes: "Axes", low: float, high: float) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    axes.set_ylim(low / 1.3, high * 1.3)
    axes.set_xlim(0, NYQUIST * 1.02)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 200 else (1,)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _dress(axes: "Axes", title: str) -> None:
    axes.set_title(title, loc="left", fontsize=9.5, color=INK, fontweight="bold", pad=8)
    axes.set_xlabel("frequency, cycles per latent position", fontsize=8, color=INK)
    axes.set_ylabel("power", fontsize=8, color=INK)
    axes.tick_params(colors=INK, labelsize=8, length=0)
    axes.grid(axis="y", color=INK, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(INK)
