"""`davae evaluate --autoencoders`: any autoencoders on any folder of images, side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from davae.core.observer import Observer, Silent
from davae.data.folder import FolderSource
from davae.evaluate import lpips
from davae.evaluate.autoencoder_table import (
    SMALLEST_SIDE,
    Row,
    TestImages,
    measure_autoencoders,
    multiple_of,
)
from davae.evaluate.hardware import hardware
from davae.evaluate.reconstruction_fid import ReconstructionFID
from davae.evaluate.results import Figure, Results
from davae.models.loading import load_autoencoder
from davae.report.figures import labelled_strip
from davae.report.page import write_report
from davae.run.paths import distinct_names, refuse_claimed

if TYPE_CHECKING:
    from rich.table import Table


def evaluate_autoencoders(
    autoencoders: Sequence[str],
    images: Path,
    size: int | None = None,
    out: Path | None = None,
    observer: Observer | None = None,
) -> Results:
    """Measure PSNR, SSIM and, where their weights are on this machine, LPIPS and rFID.

    Args:
        autoencoders: folders of saved autoencoders or pipelines, or names on the hub; plain or upgraded.
        images: folder of images.
        size: side of the centre squares to which images are shrunk, pixels; None takes whole images, cropped to
            the multiple that the autoencoders need.
        out: folder for results.json, figures/ and report.html, not that of a run; None writes nothing.
        observer: who watches.

    Raises:
        FileNotFoundError: there is no such autoencoder.
        ValueError: an autoencoder, the images, the size or the output folder cannot be used; the text says why.
    """
    observer = observer or Silent()
    if out is not None:
        refuse_claimed(out, "the table")
    labels = distinct_names([Path(path) for path in autoencoders])
    loaded = {label: load_autoencoder(path) for label, path in zip(labels, autoencoders, strict=True)}
    source = _open(images, size, multiple_of(list(loaded.values())), observer)
    perceptual = lpips.at_hand(say=observer.say)
    note = "" if perceptual else " LPIPS is left out, because its weights are not on this machine."
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    fid = ReconstructionFID.at_hand(device)
    if fid is None:
        note += " rFID is left out: the weights of the FID Inception are not on this machine."
    rows = list(measure_autoencoders(loaded, source, perceptual, device, observer, fid))
    results = Results(
        run={
            "name": f"Autoencoders on {images.resolve().name}",
            "summary": f"{len(source.ids)} images, {source.protocol['preprocessing']}.{note}",
            "hardware": hardware(),
        },
        measurements=[measurement for row in rows for measurement in row.measurements],
    )
    if out is not None:
        (out / "figures").mkdir(parents=True, exist_ok=True)
        results.figures.append(_figure(rows, out))
        results.save(out / "results.json")
        write_report(out)
    return results


def table_of(results: Results) -> "Table":
    """The table for a terminal."""
    from rich.table import Table
    from rich.text import Text

    columns = {item.column: item for item in results.measurements}
    cells = {(item.row, item.column): item.value for item in results.measurements}
    title, caption = Text(results.run["name"]), Text(results.run["summary"])  # names are no markup
    table = Table(title=title, caption=caption, caption_justify="left")
    table.add_column("")
    for name, item in columns.items():
        arrow = {"higher": " ↑", "lower": " ↓", "": ""}[item.better]
        table.add_column(Text(f"{name}{arrow}"), justify="right")
    for row in dict.fromkeys(item.row for item in results.measurements):
        table.add_row(Text(row), *(_shown(name, cells.get((row, name))) for name in columns))
    return table


def _shown(column: str, value: float | None) -> str:
    if value is None:
        return ""
    if column == "PSNR":
        return f"{value:.2f}"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4f}"


def _open(folder: Path, size: int | None, multiple: int, observer: Observer) -> TestImages:
    if size is not None and (size < SMALLEST_SIDE or size % multiple):
        least = multiple * -(-SMALLEST_SIDE // multiple)
        raise ValueError(
            f"Squares of {size} px do not fit these autoencoders; allowed are multiples of {multiple} from {least}. "
            f"Give another size, or none for whole images."
        )
    source = FolderSource(folder, size or max(multiple, SMALLEST_SIDE), captions_from="none")
    for name, reason in source.skipped:
        observer.say(f"skipped {name}: {reason}")
    what = {"source": str(folder), "fingerprint": source.fingerprint, "skipped": len(source.skipped)}
    if size is not None:
        made = f"shrunk and cropped to the centre square of {size} px"
        return TestImages(source.ids, lambda index: source.images([index], size)[0], {**what, "preprocessing": made})
    made = f"whole, cropped at the centre to multiples of {multiple} px"
    return TestImages(
        source.ids, lambda index: _cropped(source.whole(index), multiple), {**what, "preprocessing": made}
    )


def _cropped(image: Image.Image, multiple: int) -> Tensor:
    """An image but for what is cropped on all sides, uint8 [3, H, W]."""
    width, height = (side // multiple * multiple for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    pixels = np.array(image.crop((left, top, left + width, top + height)))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _figure(rows: Sequence[Row], out: Path) -> Figure:
    side = min(crop.original.shape[-1] for row in rows for crop in (row.worst, row.best))

    def middle(square: Tensor) -> Tensor:
        start = (square.shape[-1] - side) // 2
        return square[:, start : start + side, start : start + side]

    strip = [
        (row.name, torch.stack([middle(t) for crop in (row.worst, row.best) for t in (crop.original, crop.rebuilt)]))
        for row in rows
    ]
    labelled_strip(strip).save(out / "figures" / "worst-and-best.png")
    listed = "; ".join(
        f"{row.name}: {row.worst.id} {row.worst.psnr:.2f} dB, {row.best.id} {row.best.psnr:.2f} dB" for row in rows
    )
    return Figure(
        "The worst and the best image of each row",
        "Left the image with the lowest PSNR, as it is and as it was rebuilt, right the one with the highest; each "
        f"time the {side} px square in which the error is largest. {listed}.",
        "figures/worst-and-best.png",
    )
