"""How a page is written: its frame, images inside it, lists of settings, and numbers for readers.

Nothing may be fetched, from anywhere, and no script but the page's own may run: the page states it and the browser
holds it.
"""

import base64
import hashlib
import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files

from PIL import Image

_FORMATS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}
_TINY = 400  # px; a narrower image is shown enlarged by a whole factor, with hard pixels
_WIDE = 640  # px; a wider image scrolls on a phone instead of shrinking until its labels cannot be read

_STYLE, _SCRIPT = ((files("davae.report") / name).read_text(encoding="utf-8") for name in ("style.css", "page.js"))
_SCRIPT_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
"""
_POLICY = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{_SCRIPT_HASH}'"
_END = f"<script>{_SCRIPT}</script>\n</body>\n</html>\n"


def document(title: str, parts: Iterable[str]) -> str:
    """A whole page of the parts that are not empty; `title` is plain text."""
    body = (part for part in parts if part)
    return "\n".join([_HEAD.format(policy=_POLICY, title=escaped(title), style=_STYLE), *body, _END])


def escaped(value: object) -> str:
    """A value as text that means nothing to a browser, also inside quotes, and that UTF-8 can hold."""
    return html.escape(str(value).encode(errors="backslashreplace").decode(), quote=True)


def definitions(items: Mapping[str, str]) -> str:
    """Names with what they are; empty for none."""
    if not items:
        return ""
    return f"<dl>{''.join(f'<dt>{escaped(k)}</dt><dd>{escaped(v)}</dd>' for k, v in items.items())}</dl>"


def embedded_image(data: bytes, title: str, source: str, dark: bytes | None = None, enlarge_tiny: bool = True) -> str:
    """An image inside the page.

    Args:
        data: of an image file in a format that browsers show.
        title: what a reader who cannot see it is told.
        source: where it comes from, for the error.
        dark: the same for a dark page, in the same format.
        enlarge_tiny: show a narrow image enlarged until its pixels can be seen.

    Raises:
        ValueError: the format is another.
    """
    with Image.open(io.BytesIO(data)) as image:
        kind, (width, height) = image.format, image.size
    if kind not in _FORMATS:
        raise ValueError(f"A page shows {', '.join(_FORMATS)} images; got {kind} in {source}. Save it as PNG.")
    factor = max(1, 560 // width) if width < _TINY and enlarge_tiny else 1
    name = "tiny" if factor > 1 else "wide" if width > _WIDE else ""
    tag = (
        f'<img class="{name}" alt="{escaped(title)}" width="{width * factor}" height="{height * factor}" '
        f'src="{_data_uri(data, _FORMATS[kind])}">'
    )
    if dark is None:
        return tag
    # A print of a page that is read in the dark is on white paper all the same.
    query = "screen and (prefers-color-scheme: dark)"
    return f'<picture><source media="{query}" srcset="{_data_uri(dark, _FORMATS[kind])}">{tag}</picture>'


def png(image: Image.Image) -> bytes:
    """PNG of a picture."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def flat_png(image: Image.Image) -> bytes:
    """PNG of a drawing, RGBA: of flat colours a palette of 64 loses nothing and is a third of the size."""
    return png(image.quantize(64, Image.Quantize.FASTOCTREE))


def plain(value: object) -> str:
    """A JSON value as a reader expects it: no brackets but around what is inside something else, no nulls inside."""
    if isinstance(value, Mapping):
        words = ((str(key).replace("_", " "), item) for key, item in value.items() if item is not None)
        return ", ".join(f"{key} {_inner(item)}" for key, item in words)
    if isinstance(value, list | tuple):
        return ", ".join(map(_inner, value))
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value) if isinstance(value, bool | None) else str(value)


def _inner(value: object) -> str:
    return f"({plain(value)})" if isinstance(value, Mapping | list | tuple) else plain(value)


def number(value: float, peers: Sequence[float]) -> str:
    """A number with the decimals that its line of a table needs: about four digits of the largest of `peers`."""
    largest = max(abs(peer) for peer in peers)
    if all(float(peer).is_integer() for peer in peers):
        return f"{value:,.0f}"
    if largest < 1e-3:
        return f"{value:.2e}"
    decimals = 0 if largest >= 1e4 else 1 if largest >= 100 else 2 if largest >= 10 else 3 if largest >= 0.1 else 5
    return f"{value:,.{decimals}f}".replace("-", "\u2212")


def rate(value: float) -> str:
    """A rate to three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """A time in the two largest of hours, minutes and seconds."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left} min" if hours else f"{minutes} min {rest} s"


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
