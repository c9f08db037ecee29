"""The metadata of MJHQ-30K: an id, a prompt and one of ten categories for each of 30,000 images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from davae.data.annotations import parse_captions, parse_json, read_text
from davae.data.errors import DataError


@dataclass(frozen=True)
class MJHQPrompt:
    """An entry of meta_data.json; its image is `CATEGORY/ID.jpg`."""

    id: str
    prompt: str
    category: str


def read_mjhq(path: Path) -> list[MJHQPrompt]:
    """The entries of `meta_data.json`, in the order of the file, in which `davae generate --prompts` draws them too.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is no object from ids to entries with prompt and category.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no metadata {path}. Correct the path.")
    entries = parse_json(read_text(path.read_bytes(), str(path)), str(path))
    if not isinstance(entries, dict) or not entries:
        raise DataError(
            f"cannot read {path}: allowed is an object from ids to entries; take MJHQ-30K's meta_data.json"
        )
    return [_entry(key, entry, f"{path} entry {key}") for key, entry in entries.items()]


def categories_by_id(names: Sequence[str], metadata: Path) -> list[str]:
    """Category of each image, by the id that it is named by, in whatever folders: `animals/0a1b.jpg`.

    Raises:
        FileNotFoundError: there is no such metadata.
        DataError: an image is of no entry.
    """
    known = {entry.id: entry.category for entry in read_mjhq(metadata)}
    ids = {name: PurePosixPath(name).stem for name in names}
    if absent := [name for name, key in ids.items() if key not in known]:
        raise DataError(
            f"{len(absent)} of {len(ids)} images are of no entry of {metadata}, {absent[0]} the first: allowed are "
            f"names that are its ids; give the reference that it is of"
        )
    return [known[ids[name]] for name in names]


def _entry(key: str, entry: object, where: str) -> MJHQPrompt:
    if not isinstance(entry, dict):
        raise DataError(f"cannot read {where}: got {entry!r}; allowed is an object; correct it")
    prompt, category = next(iter(parse_captions(entry, where)), ""), entry.get("category")
    if not prompt or not isinstance(category, str) or not category:
        raise DataError(f"no {'category' if prompt else 'prompt'} in {where}: allowed is text; correct it")
    return MJHQPrompt(key, prompt, category)
