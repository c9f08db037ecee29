"""The folder of a saved model as people have it: which files hold its weights, whether they are whole, its configs.

diffusers and transformers look for weights under their standard names alone: one file, or shards with an index.
People also have folders with nothing but a variant (fp16, bf16), shards without their index, pointers of git-lfs, and
downloads that broke off. `readable` shows the libraries what they look for, or says what is wrong. No pickle is read.
"""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError, safe_open

CONFIG = "config.json"
_WEIGHTS = re.compile(
    r"(?P<stem>diffusion_pytorch_model|model)(\.(?P<variant>\w+))?(-(?P<shard>\d{5})-of-(?P<total>\d{5}))?(\.(?P<late>\w+))?"
    r"\.safetensors"
)
_INDEX = re.compile(r"(?P<stem>diffusion_pytorch_model|model)\.safetensors\.index(\.(?P<variant>\w+))?\.json")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class WeightFiles:
    """Names of the files that hold a model's weights in one variant.

    Args:
        stem: how their names begin.
        variant: for example "fp16"; None for the plain ones.
        files: one, or all shards that are there.
        index: of the shards, where there is one.
        absent: shards that should be there, by the count in the names of the others.
    """

    stem: str
    variant: str | None
    files: tuple[str, ...]
    index: str | None
    absent: tuple[str, ...]

    @property
    def is_standard(self) -> bool:
        """Whether diffusers and transformers find them by themselves."""
        return self.variant is None and (self.index is not None or self.files == (f"{self.stem}.safetensors",))


def choose_weights(names: Iterable[str]) -> list[WeightFiles]:
    """The variants of a model's weights among the names of files: the plain ones alone where there are any."""
    found: dict[tuple[str, str | None], dict[str, Any]] = {}
    for name in sorted(names):
        match, index = _WEIGHTS.fullmatch(name), _INDEX.fullmatch(name)
        if match:
            key = match["stem"], match["variant"] or match["late"]
            entry = found.setdefault(key, {"files": [], "shards": {}, "index": None})
            if match["shard"] is None:
                entry["files"].append(name)
            else:
                entry["shards"][int(match["shard"])] = (name, match.span("shard"), int(match["total"]))
        elif index:
            key = index["stem"], index["variant"]
            found.setdefault(key, {"files": [], "shards": {}, "index": None})["index"] = name
    variants = [_variant(stem, variant, entry) for (stem, variant), entry in found.items()]
    plain = [weights for weights in variants if weights.variant is None]
    return plain[:1] or variants


def read_config(file: Path) -> dict[str, Any]:
    """The JSON object in a config file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is something else.
    """
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file}. Save or download the model again.")
    content = file.read_bytes()
    try:
        value = json.loads(content.decode())
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, nested without end
        raise ValueError(f"Cannot read {file}: {_kind(content) or error}. Save or download it again.") from None
    if not isinstance(value, dict):
        raise ValueError(
            f"Cannot read {file}: got a {type(value).__name__}, allowed is a JSON object. Save it again."
        )
    return value


@contextmanager
def readable(folder: Path) -> Iterator[Path]:
    """A folder with the same model under the names that diffusers and transformers know, while the block runs.

    It is the folder itself, or a temporary one of links to its files.

    Raises:
        FileNotFoundError: there are no weights in safetensors, or not all of them.
        ValueError: there are several variants and no plain weights, or a file is not what its name says.
    """
    weights = check_weights(folder)
    if weights.is_standard:
        yield folder
        return
    with TemporaryDirectory(prefix="davae-") as temporary:
        links = Path(temporary)
        for file in folder.iterdir():
            if not (_WEIGHTS.fullmatch(file.name) or _INDEX.fullmatch(file.name)):
                (links / file.name).symlink_to(file.resolve())
        single = len(weights.files) == 1 and weights.index is None
        for name in weights.files:
            (links / (f"{weights.stem}.safetensors" if single else name)).symlink_to((folder / name).resolve())
        if not single:
            (links / f"{weights.stem}.safetensors.index.json").write_text(json.dumps(_index_of(folder, weights)))
        yield links


def check_weights(folder: Path) -> WeightFiles:
    """The files that hold a model's weights; see `readable`."""
    names = [file.name for file in folder.iterdir() if file.is_file()]
    variants = choose_weights(names)
    if not variants:
        raise FileNotFoundError(_absence(folder, names))
    if len(variants) > 1:
        given = ", ".join(f"{weights.variant} ({(*weights.files, weights.index)[0]})" for weights in variants)
        raise ValueError(
            f"Cannot choose among the weights in {folder}: got the variants {given}, and no plain ones. Keep one, or "
            f"rename its file to {variants[0].stem}.safetensors."
        )
    weights = variants[0]
    absent = weights.absent if weights.index is None else _missing_shards(folder, weights.index)
    if absent:
        raise FileNotFoundError(
            f"The weights in {folder} are incomplete: {len(absent)} shards (safetensors) are missing, for example "
            f"{absent[0]}. Download or save it again."
        )
    for name in weights.files:
        _expect_safetensors(folder / name)
    return weights


def _variant(stem: str, variant: str | None, entry: dict[str, Any]) -> WeightFiles:
    if entry["files"]:
        return WeightFiles(stem, variant, tuple(entry["files"][:1]), None, ())
    shards = entry["shards"]
    if not shards:
        return WeightFiles(stem, variant, (), entry["index"], ())
    name, (start, stop), total = next(iter(shards.values()))
    every = {number: f"{name[:start]}{number:05d}{name[stop:]}" for number in range(1, total + 1)}
    absent = [every[number] for number in every if number not in shards]
    return WeightFiles(stem, variant, tuple(shard[0] for shard in shards.values()), entry["index"], tuple(absent))


def _missing_shards(folder: Path, index: str) -> tuple[str, ...]:
    places = read_config(folder / index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"Cannot read {folder / index}: it has no weight_map of file names. Download it again.")
    outside = sorted({name for name in places.values() if not _WEIGHTS.fullmatch(name)})
    if outside:
        raise ValueError(
            f"{folder / index} names other files than shards of weights: got {', '.join(outside[:3])}. Download it "
            f"again."
        )
    return tuple(sorted({name for name in places.values() if not (folder / name).is_file()}))


def _index_of(folder: Path, weights: WeightFiles) -> dict[str, Any]:
    if weights.index is not None:
        return read_config(folder / weights.index)
    places: dict[str, str] = {}
    for name in weights.files:
        with safe_open(folder / name, framework="pt") as file:
            places |= dict.fromkeys(file.keys(), name)
    return {"metadata": {}, "weight_map": places}


def _expect_safetensors(file: Path) -> None:
    try:
        with safe_open(file, framework="pt"):
            return
    except (SafetensorError, OSError) as error:
        with file.open("rb") as stream:
            kind = _kind(stream.read(512))
        raise ValueError(
            f"Cannot read {file}: {kind or f'it is no whole safetensors file ({error})'}. "
            f"{'Run git lfs pull in its repository' if kind and 'git-lfs' in kind else 'Download or save it again'}."
        ) from None


def _kind(content: bytes) -> str | None:
    """What a file is that is not what its name says, as far as its beginning shows."""
    start = content[:512].lstrip().lower()
    if not start:
        return "it is empty"
    if start.startswith(_POINTER):
        return "it is a pointer of git-lfs, not the file itself"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page, not the file"
    return None


def _absence(folder: Path, names: list[str]) -> str:
    pickles = [name for name in names if name.endswith(_PICKLES)]
    parts = [name for name in names if name.endswith((".incomplete", ".part", ".tmp"))]
    if parts:
        return f"The weights in {folder} are incomplete: {parts[0]} is a download that broke off. Download it again."
    if pickles:
        return (
            f"There are no weights in safetensors in {folder}: got {', '.join(pickles[:3])}, which can run code and "
            f"is never read. Save it with safe_serialization=True where you trust it, or download the safetensors."
        )
    return (
        f"There are no weights in safetensors in {folder}: got {', '.join(sorted(names)[:6]) or 'an empty folder'}. "
        f"Download or save it again."
    )
