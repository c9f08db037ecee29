"""How people name what enlarges images: `bicubic`, `esrgan:FILE`, `command:"prog --in {input} ..."`."""

import difflib
from pathlib import Path

import torch

from davae.convert.from_esrgan import load_network
from davae.sampling.upscaling.command import TIMEOUT, Command
from davae.sampling.upscaling.filters import FILTERS
from davae.sampling.upscaling.foreign import open_spandrel
from davae.sampling.upscaling.network import NetworkUpscaler
from davae.sampling.upscaling.upscaler import Upscaler

_NAMED = {"esrgan": "FILE", "spandrel": "FILE", "command": "PROGRAM ..."}
SPECS = (*FILTERS, *(f"{kind}:{rest}" for kind, rest in _NAMED.items()))
"""What can be written."""


def open_upscaler(
    spec: str,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    timeout: float = TIMEOUT,
) -> Upscaler:
    """What a SPEC names, ready to be used.

    Args:
        spec: one of `SPECS`.
        device: where networks compute; None takes a GPU where there is one.
        dtype: in which precision.
        timeout: seconds that a call of another program may take.

    Raises:
        ValueError: nothing is named so, its file is missing or holds something else, or its command cannot be read.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, colon, rest = spec.partition(":")
    if not colon and kind in FILTERS:
        return FILTERS[kind]
    if kind not in _NAMED or not rest.strip():
        close = difflib.get_close_matches(kind, [*FILTERS, *_NAMED], n=1)
        hint = f" Did you mean '{close[0]}'?" if close and close[0] != kind else ""
        raise ValueError(f"Unknown upscaler {spec!r}; allowed are {', '.join(SPECS)}.{hint}")
    if kind == "command":
        return Command(rest, timeout)
    path = Path(rest).expanduser()
    return open_spandrel(path, device, dtype) if kind == "spandrel" else _open_esrgan(path, device, dtype)


def _open_esrgan(path: Path, device: torch.device, dtype: torch.dtype) -> NetworkUpscaler:
    found = load_network(path)
    network = found.network.to(device, dtype)
    name = path.stem if path.suffix != ".json" else f"{path.parent.name}/{path.stem}"
    return NetworkUpscaler(
        name=name,
        network=network,
        scale=network.scale,
        about={"network": network.geometry, "layout": found.layout, "sha256": dict(found.checksums)},
        multiple=network.multiple,
        device=device,
        dtype=dtype,
    )
