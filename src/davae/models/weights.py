"""Public weight files: where they come from, where they are kept, and that they are the right ones.

A file is looked for in davae's cache folder, then in torch.hub's; it is downloaded only where the caller allows
that, under another name until its checksum is verified. Nothing that was there before is replaced or deleted.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Final
from urllib.request import Request, urlopen

import torch
from filelock import FileLock
from safetensors.torch import load_file
from torch import Tensor

from davae.core.files import cache_folder, file_sha256, replacing, sweep

_BLOCK: Final = 1 << 20
_TIMEOUT: Final = 60  # seconds without a byte


@dataclass(frozen=True)
class PublicFile:
    """A file that anybody can fetch.

    Args:
        title: what to call it in messages.
        name: its name in a cache folder.
        url: http(s) or file address.
        sha256: hex digest of the whole file.
        size: bytes.
    """

    title: str
    name: str
    url: str
    sha256: str
    size: int


VGG16: Final = PublicFile(
    title="VGG16 of the PyTorch model zoo",
    name="vgg16-397923af.pth",
    url="https://download.pytorch.org/models/vgg16-397923af.pth",
    sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    size=553_433_881,
)
LPIPS_LINEAR: Final = PublicFile(
    title="linear layers of LPIPS v0.1 for VGG16",
    name="lpips-v0.1-vgg.pth",  # its own name, vgg.pth, says too little in a folder of many
    url="https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/vgg.pth",
    sha256="a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    size=7_289,
)
INCEPTION: Final = PublicFile(
    title="FID Inception (2015-12-05)",
    name="pt_inception-2015-12-05-6726825d.pth",
    url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    size=95_628_359,
)
PUBLIC_FILES: Final = (VGG16, LPIPS_LINEAR, INCEPTION)


def load_weights(
    places: Mapping[PublicFile, Path | None], allow_download: bool = False, say: Callable[[str], None] | None = None
) -> list[dict[str, Tensor]]:
    """The tensors of public files, or of somebody's own conversions of them, in the order of `places`.

    Args:
        places: where each file is. None looks for it in the caches. A `.pth` has to be the public file, by its
            checksum; a `.safetensors` is taken as it is, and the model has to account for its keys and shapes.
        allow_download: whether files that no cache has may be fetched from their addresses.
        say: is told of a download before it starts.

    Raises:
        FileNotFoundError: there is no such file; the message says what to fetch, and where to put it.
        ValueError: a file, or what was downloaded, is something else.
        ConnectionError: a download failed.
    """
    paths = {file: find(file) if path is None else path for file, path in places.items()}
    absent = [file for file, path in paths.items() if path is None]
    if absent and not allow_download:
        folders = " or ".join(str(folder) for folder in _folders())
        titles = " and ".join(f"{file.title} ({file.name})" for file in absent)
        raise FileNotFoundError(f"Cannot load {titles}: not in {folders}. {_by_hand(absent)}")
    for number, file in enumerate(absent):
        try:
            paths[file] = fetch(file, say)
        except ConnectionError as error:
            raise ConnectionError(f"{error} {_by_hand(absent[number:])}") from error
    return [_read(file, path) for file, path in paths.items() if path is not None]


def find(file: PublicFile) -> Path | None:
    """Where a cache has a file of this name; davae's cache first, then torch.hub's."""
    return next((folder / file.name for folder in _folders() if (folder / file.name).is_file()), None)


def fetch(file: PublicFile, say: Callable[[str], None] | None = None) -> Path:
    """Download a file into davae's cache, unless it is there by then; its path.

    Raises:
        ValueError: another file came. It is not kept.
        ConnectionError: nothing came, or not all of it.
    """
    target = cache_folder() / file.name
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent)
    with FileLock(f"{target}.lock"):  # of several processes the first fetches, the others find it done
        if not target.is_file():
            _download(file, target, say)
    return target


def verify(file: PublicFile, path: Path) -> None:
    """Refuse a file that is not the public one.

    Raises:
        ValueError: with both checksums; the file stays where it is.
    """
    digest = file_sha256(path)
    if digest != file.sha256:
        known = next(
            (f" It is the file of the {other.title}." for other in PUBLIC_FILES if other.sha256 == digest), ""
        )
        raise ValueError(
            f"{path} is not the file of the {file.title}: {_difference(file, digest, path.stat().st_size)}.{known} "
            f"Give the right one, or move this one away and fetch {file.url}."
        )


def _read(file: PublicFile, path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(
            f"Cannot load {file.title}: no file at {path}. Correct the path, or give none to take the public file "
            f"({file.url})."
        )
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix != ".pth":
        raise ValueError(
            f"Cannot load {file.title} from {path}: got '{path.suffix}', allowed are .pth (the public file) and "
            f".safetensors (your own conversion of it). Rename or convert it."
        )
    verify(file, path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _download(file: PublicFile, target: Path, say: Callable[[str], None] | None) -> None:
    if say is not None:
        say(f"fetching {file.title}, {file.size / 1e6:,.2f} MB, from {file.url} to {target}")
    request = Request(file.url, headers={"User-Agent": "davae"})
    try:
        with replacing(target) as temporary:
            with urlopen(request, timeout=_TIMEOUT) as response, temporary.open("wb") as stream:
                shutil.copyfileobj(response, stream, _BLOCK)
            digest = file_sha256(temporary)
            if digest != file.sha256:
                raise ValueError(
                    f"What came from {file.url} is not the file of the {file.title}: "
                    f"{_difference(file, digest, temporary.stat().st_size)}. Try again; it was not kept."
                )
    except (OSError, HTTPException) as error:
        raise ConnectionError(f"Cannot fetch {file.url} to {target}: {error}.") from error


def _folders() -> tuple[Path, Path]:
    return cache_folder(), Path(torch.hub.get_dir()) / "checkpoints"


def _difference(file: PublicFile, sha256: str, size: int) -> str:
    return f"got sha256 {sha256} ({size:,} bytes), expected {file.sha256} ({file.size:,} bytes)"


def _by_hand(files: Iterable[PublicFile]) -> str:
    commands = "; ".join(f"curl --create-dirs -Lo {cache_folder() / file.name} {file.url}" for file in files)
    return f"Fetch by hand, once, on a machine with a network: {commands}"
