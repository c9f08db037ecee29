"""Owner of how trained models come to disk: whole, of finite numbers, and sealed with the checksums of their weights.

Stock diffusers passes the seal over. It is compared before the weights are read for use.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from davae.core.files import SEAL, file_hash, replacing_folder
from davae.core.finite import non_finite
from davae.core.state import read_json, write_json


@contextmanager
def saving(target: Path, *models: nn.Module) -> Iterator[Path]:
    """A temporary folder to save models to; it takes the place of `target`, sealed, when the block ends.

    Args:
        target: what stands there is replaced.
        models: that will be saved, to be looked at before.

    Raises:
        FloatingPointError: a weight is not finite; what stands at `target` stays.
    """
    for model in models:
        if bad := non_finite(model.state_dict()):
            raise FloatingPointError(
                f"Cannot save the {type(model).__name__} to {target}: {len(bad)} of its tensors are not finite, for "
                f"example {', '.join(bad[:3])}. Nothing was written. Train it again with a lower learning rate."
            )
    with replacing_folder(target, sync=True) as folder:
        yield folder
        seal(folder)


def seal(folder: Path) -> None:
    """Write down the checksums of the weights that lie in a folder of saved models, at any depth."""
    weights = sorted(folder.rglob("*.safetensors"))
    write_json(folder / SEAL, {file.relative_to(folder).as_posix(): file_hash(file) for file in weights}, indent=1)


def verify(folder: Path) -> Path:
    """Refuse weights that are not those that were saved; returns the folder.

    Files are read once a process. What is not sealed, as everything that others saved, is taken as it is.

    Args:
        folder: of a saved model or pipeline, or a part of one.

    Raises:
        ValueError: a file is missing, or its contents are other ones.
    """
    for root in (folder, folder.parent):
        if (root / SEAL).is_file():
            _compare(root, folder)
            break
    return folder


def _compare(root: Path, folder: Path) -> None:
    remedy = "Remove it if the weights are right; then they are taken as they are."
    for name, written in read_json(root / SEAL, dict[str, str], remedy).items():
        file = root / name
        if not file.is_relative_to(folder):
            continue
        if not file.is_file() or file_hash(file) != written:
            what = "is not what was saved" if file.is_file() else "is missing"
            raise ValueError(
                f"The weights in {folder} are damaged: {file} {what}, by its checksum in {root / SEAL}. Put a copy "
                f"of it back; weights that you changed yourself are taken without {SEAL}. A run makes them again "
                f"when you remove {root} and run the same command: its training is taken up from the last checkpoint."
            )
