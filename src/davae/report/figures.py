"""Owner of the pictures in a report: grids, labelled strips, loss curves and maps of latents.

Backgrounds are transparent and ink is a middle grey, so that a figure reads on a light and a dark page.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from davae.core.layout import LatentLayout

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#7c7c85"  # contrast of about 4:1 against white and against a near-black page
_READABLE_TILE = 128  # px; smaller images are enlarged until a reader sees their pixels
_LABEL_CHARACTERS = 14


@dataclass(frozen=True)
class _Palette:
    """Colours of a figure: of its text, of what it is measured against, of its lines."""

    ink: str
    rule: str
    lines: tuple[str, ...]
    further: tuple[str, ...]
    """Colours of more lines, where settings are compared."""


_LIGHT = _Palette(
    "#6a6a73",
    "#d9d9df",
    ("#2c5fd6", "#c8552b", "#23875a", "#8558bd"),
    ("#b0851c", "#1b8aa5", "#b5399a", "#77777f"),
)
_DARK = _Palette(
    "#a3a3ad",
    "#3a3a42",
    ("#86aaff", "#ff9f78", "#6ccf9f", "#c2a1f2"),
    ("#e0be62", "#67cfe6", "#f58fdc", "#b4b4be"),
)
_STYLES = ("-", "--", ":", "-.")
"""Of lines, where there are more of them than colours."""


def image_grid(images: Tensor, columns: int, pad: int = 2, scale: int = 1) -> Image.Image:
    """Images in rows of `columns`.

    Args:
        images: uint8 [N, 3, H, W].
        columns: images a row; the last row may be shorter.
        pad: transparent px between images.
        scale: whole factor of nearest-neighbour enlargement.
    """
    if columns < 1 or scale < 1 or pad < 0:
        raise ValueError(
            f"An image grid needs columns >= 1, scale >= 1 and pad >= 0; "
            f"got columns {columns}, scale {scale}, pad {pad}."
        )
    tiles = _tiles(images, "image grid")
    width, height = tiles[0].width * scale, tiles[0].height * scale
    columns = min(columns, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    size = (columns * (width + pad) - pad, rows * (height + pad) - pad)
    grid = Image.new("RGBA", size, (0, 0, 0, 0))
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        enlarged = tile.resize((width, height), Image.Resampling.NEAREST)
        grid.paste(enlarged, (column * (width + pad), row * (height + pad)))
    return grid


def labelled_strip(rows: Sequence[tuple[str, Tensor]]) -> Image.Image:
    """Rows of images with a label on the left, column i showing the same sample in every row.

    All images are drawn at one size: smaller ones are enlarged with nearest neighbours, so that a base
    image beside a full one shows how much coarser it is.

    Args:
        rows: (label, uint8 [N, 3, H, W]) pairs; N and H:W are the same in every row, H and W need not be.
    """
    if not rows:
        raise ValueError("A labelled strip needs at least one row of images; got none.")
    strips = [(label, _tiles(images, f"row '{label}'")) for label, images in rows]
    counts = {label: len(tiles) for label, tiles in strips}
    if len(set(counts.values())) > 1:
        raise ValueError(
            f"Rows of a labelled strip hold the same samples; got {counts} images. Take as many of each."
        )
    largest = max((tiles[0] for _, tiles in strips), key=lambda tile: tile.height)
    factor = max(1, math.ceil(_READABLE_TILE / largest.height))
    width, height = largest.width * factor, largest.height * factor

    count, pad = len(strips[0][1]), max(2, height // 64)
    # A strip is shown at the width of the page, so its type grows with the strip.
    type_size = max(13, round(count * width / 62))
    font = ImageFont.load_default(size=type_size)
    texts = ["\n".join(textwrap.wrap(label, _LABEL_CHARACTERS)) for label, _ in strips]
    ruler = ImageDraw.Draw(Image.new("RGBA", (1, 1)))
    margin = math.ceil(max(ruler.multiline_textbbox((0, 0), text, font=font)[2] for text in texts) + type_size)

    canvas = (margin + count * (width + pad) - pad, len(strips) * (height + pad) - pad)
    strip = Image.new("RGBA", canvas, (0, 0, 0, 0))
    draw = ImageDraw.Draw(strip)
    for row, ((_, tiles), text) in enumerate(zip(strips, texts, strict=True)):
        top = row * (height + pad)
        draw.multiline_text((0, top + height / 2), text, fill=INK, font=font, anchor="lm", spacing=type_size / 4)
        for column, tile in enumerate(tiles):
            enlarged = tile.resize((width, height), Image.Resampling.NEAREST)
            strip.paste(enlarged, (margin + column * (width + pad), top))
    return strip


def loss_curves(
    rows: Sequence[Mapping[str, Any]], keys: Sequence[str], title: str, dark: bool = False
) -> Image.Image:
    """Curves over steps: raw values faint, their exponential average solid, log scale over a decade or more.

    Args:
        rows: log rows with "step" and some of `keys`; a later row replaces an earlier one of its step.
        keys: the values to draw, up to 4.
        title: written above the axes.
        dark: colours for a dark page; the background is transparent either way.
    """
    from matplotlib.figure import Figure

    palette = _DARK if dark else _LIGHT
    if not 1 <= len(keys) <= len(palette.lines):
        raise ValueError(f"Loss curves draw 1 to {len(palette.lines)} keys in one figure; got {list(keys)}.")
    figure = Figure(figsize=(4.8, 2.9), dpi=200, layout="constrained")
    axes = figure.add_subplot()
    ranges = []
    for key, colour in zip(keys, palette.lines, strict=False):
        steps, values = _series(rows, key)
        smooth = _exponential_average(values)
        axes.plot(steps, values, color=colour, alpha=0.28, linewidth=0.8)
        axes.plot(steps, smooth, color=colour, linewidth=1.7, label=key, solid_capstyle="round")
        ranges.append(np.concatenate([smooth, np.percentile(values, [1, 99])]))
    _scale(axes, np.concatenate(ranges))
    _dress(axes, title, palette)
    if len(keys) > 1:
        axes.legend(frameon=False, fontsize=8, labelcolor=palette.ink, loc="upper right", handlelength=1.2)
    return figure_image(figure)


def overlaid_curves(
    cells: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], key: str, title: str, dark: bool = False
) -> Image.Image:
    """One value over steps under several settings: a colour each, a thin line a seed, solid the mean over seeds.

    All lines are exponential averages; the scale is logarithmic over a decade or more.

    Args:
        cells: name of a setting -> log rows of each of its seeds, with "step" and `key`. One without any is not drawn
            and keeps its colour, which is the same in every figure of these settings.
        key: the value to draw.
        title: written above the axes.
        dark: colours for a dark page; the background is transparent either way.
    """
    from matplotlib.figure import Figure

    palette = _DARK if dark else _LIGHT
    colours = (*palette.lines, *palette.further)
    figure = Figure(figsize=(4.8, 3.2), dpi=200, layout="constrained")
    axes = figure.add_subplot()
    drawn = []
    for place, (name, runs) in enumerate(cells.items()):
        colour, style = colours[place % len(colours)], _STYLES[place // len(colours) % len(_STYLES)]
        if not runs:
            continue
        series = [_series(rows, key) for rows in runs]
        smooth = [dict(zip(steps.tolist(), _exponential_average(values), strict=True)) for steps, values in series]
        for line in smooth if len(smooth) > 1 else ():
            axes.plot(list(line), list(line.values()), style, color=colour, alpha=0.35, linewidth=0.7)
        shared = sorted(set[int].intersection(*map(set, smooth)))  # a seed that is not done has fewer
        mean = [float(np.mean([line[step] for line in smooth])) for step in shared]
        axes.plot(shared, mean, style, color=colour, linewidth=1.6, label=name, solid_capstyle="round")
        drawn += [np.array(list(line.values())) for line in smooth]
    _scale(axes, np.concatenate(drawn))
    _dress(axes, title, palette)
    axes.legend(frameon=False, fontsize=7, labelcolor=palette.ink, loc="best", handlelength=1.6)
    return figure_image(figure)


def latent_figure(latent: Tensor, base_channels: int) -> Image.Image:
    """Maps of a structured latent: each base channel above the mean of its detail group and the group's members.

    Every map is shown as deviations from its own mean, blue below and red above, saturated at 2.5 of its
    standard deviations. The number on a mean is its correlation with the base channel over positions:
    near 1 where the detail is aligned.

    Args:
        latent: float [C + D, h, w], base channels first.
        base_channels: C.
    """
    from matplotlib.figure import Figure

    layout = LatentLayout(base_channels, latent.shape[0] - base_channels)
    columns = _latent_columns(latent.detach().to("cpu", torch.float32), layout)
    titles = ["base", "mean of\ngroup", *(f"detail {i}" for i in range(max(len(c) for c in columns) - 2))]
    depth = max(len(column) for column in columns)
    cell = 0.82  # inches a map
    figure = Figure(figsize=(cell * len(columns) + 0.9, (cell + 0.17) * depth), dpi=140, layout="constrained")
    grid = figure.subplots(depth, len(columns), squeeze=False)
    for k, column in enumerate(columns):
        for row in range(depth):
            axes = grid[row][k]
            axes.set_axis_off()
            if row < len(column):
                _draw_map(axes, column[row], _map_title(k, row, column))
    for row, text in enumerate(titles[:depth]):
        grid[row][0].text(
            -0.18, 0.5, text, transform=grid[row][0].transAxes, ha="right", va="center", fontsize=8, color=INK
        )
    return figure_image(figure)


def _latent_columns(latent: Tensor, layout: LatentLayout) -> list[list[Tensor]]:
    """For each base channel: its map, its group's mean, its group's members; the base alone without detail."""
    base, detail = layout.split(latent[None])
    if layout.detail_channels == 0:
        return [[channel] for channel in base[0]]
    means = layout.group_mean(detail)[0]
    # The grouped mean of unit vectors tells who belongs to whom; the layout alone knows the grouping.
    units = torch.eye(layout.detail_channels)[:, :, None, None]
    owner = layout.group_mean(units)[:, :, 0, 0].argmax(dim=1)
    return [[base[0, k], means[k], *detail[0][owner == k]] for k in range(layout.base_channels)]


def _map_title(k: int, row: int, column: list[Tensor]) -> str:
    if row == 0:
        return f"{k}"
    if row > 1:
        return ""
    if min(float(column[0].std()), float(column[1].std())) == 0:  # a constant map has no correlation
        return "r -"
    return f"r {float(torch.corrcoef(torch.stack([column[0].flatten(), column[1].flatten()]))[0, 1]):.2f}"


def _draw_map(axes: "Axes", channel: Tensor, title: str) -> None:
    deviation = float(channel.std())
    values = (channel - channel.mean()) / (deviation if deviation > 0 else 1.0)
    axes.imshow(values.numpy(), cmap="RdBu_r", vmin=-2.5, vmax=2.5, interpolation="nearest")
    axes.set_title(title, fontsize=7, color=INK, pad=2)


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    # A resumed run logs the steps after its checkpoint again: the later row counts.
    points = {row["step"]: float(row[key]) for row in rows if key in row and math.isfinite(row[key])}
    if not points:
        raise ValueError(f"No finite value of '{key}' to draw in {len(rows)} log rows. Leave the key out.")
    steps = sorted(points)
    return np.array(steps), np.array([points[step] for step in steps])


def _exponential_average(values: np.ndarray) -> np.ndarray:
    """Average with a memory of 2% of the curve, without the pull of the first value (as Adam's correction)."""
    decay = math.exp(-1 / max(1.0, 0.02 * len(values)))
    total, weight, smooth = 0.0, 0.0, np.empty_like(values)
    for index, value in enumerate(values):
        total = decay * total + (1 - decay) * value
        weight = decay * weight + (1 - decay)
        smooth[index] = total / weight
    return smooth


def _scale(axes: "Axes", values: np.ndarray) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = float(values.min()), float(values.max())
    if low > 0 and high / low >= 10:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.15, high * 1.15)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 200 else (1,)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set_ylim(low - room, high + room)
        axes.locator_params(axis="y", nbins=5)


def _dress(axes: "Axes", title: str, palette: _Palette) -> None:
    axes.set_title(title, loc="left", fontsize=9.5, color=palette.ink, fontweight="bold", pad=8)
    axes.set_xlabel("step", fontsize=8, color=palette.ink)
    axes.locator_params(axis="x", nbins=6)
    axes.tick_params(colors=palette.ink, labelsize=8, length=0)
    axes.grid(axis="y", color=palette.rule, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(x=0.01)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(palette.rule)


def figure_image(figure: "Figure") -> Image.Image:
    """A figure as an RGBA picture with a transparent ground, for light and dark pages.

    Dollar signs are what they are: names of folders and files stand in figures.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba()).copy())


def _tiles(images: Tensor, what: str) -> list[Image.Image]:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or len(images) == 0:
        raise ValueError(
            f"The {what} takes uint8 images [N, 3, H, W], N >= 1; got {images.dtype} {tuple(images.shape)}."
        )
    return [Image.fromarray(image.permute(1, 2, 0).cpu().contiguous().numpy()) for image in images]
