"""Checkpoints: folders of safetensors files, complete or absent, the newest complete one wins.

A checkpoint is written under a temporary name and renamed, so that a kill or a full disk leaves the one
before it untouched. No pickle: optimizer state is tensors too.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from davae.core.files import replacing_folder, text_hash
from davae.core.state import parse_json, read_json, write_json
from davae.core.tensor_files import load_tensors, save_tensors
from davae.data.fingerprints import are_of_other_kinds

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
_PREFIX = "checkpoint-"
_MANIFEST = "checkpoint.json"


@dataclass(frozen=True)
class _Manifest:
    """What is written last into a checkpoint.

    Args:
        format_version: of the folder.
        step: finished steps.
        files: name and bytes of each group's file.
        identity: of the training.
        checksum: of the others; earlier versions have none.
    """

    format_version: int
    step: int
    files: dict[str, int]
    identity: dict[str, Any]
    checksum: str | None = None

    @property
    def contents(self) -> dict[str, Any]:
        """What the checksum is of."""
        names = ("format_version", "step", "files", "identity")
        return {name: getattr(self, name) for name in names}


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or does not belong to this run."""


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint, read from disk."""

    path: Path
    step: int
    groups: dict[str, dict[str, Tensor]]
    """Named groups of tensors, for example "generator", "generator.ema", "generator.optimizer"."""


class CheckpointStore:
    """The checkpoints of one training stage.

    Args:
        folder: holds `checkpoint-00001000/` and so on.
        identity: what the training is (its resolved settings and inputs). Resuming with another identity is
            refused with the difference.
        keep: how many complete checkpoints stay.
    """

    def __init__(self, folder: Path, identity: Mapping[str, object], keep: int = 2) -> None:
        self.folder, self.identity, self.keep = folder, dict(identity), keep

    def save(self, step: int, groups: Mapping[str, Mapping[str, Tensor]]) -> Path:
        """Write the checkpoint of `step` (steps finished), then drop the oldest beyond `keep`.

        Raises:
            CheckpointError: it could not be written; the one before it is intact.
        """
        target = self.folder / _name(step)
        # One process writes here: what has a temporary name, of whatever process, was left by one that was killed.
        for left in self.folder.glob(f".{_PREFIX}*.tmp"):
            shutil.rmtree(left, ignore_errors=True)
        try:
            with replacing_folder(target, sync=True) as temporary:
                sizes = {name: _write(temporary / f"{name}.safetensors", group) for name, group in groups.items()}
                manifest = _Manifest(FORMAT_VERSION, step, sizes, self.identity).contents
                write_json(temporary / _MANIFEST, {**manifest, "checksum": _checksum(manifest)}, indent=1)
        except (OSError, SafetensorError) as error:
            standing = self._paths()
            raise CheckpointError(
                f"Could not save the checkpoint of step {step} in {self.folder}: {error}. "
                + (f"The one before it is intact: {standing[-1].name}. " if standing else "No earlier one exists. ")
                + "Free some space and run the same command again."
            ) from error
        paths = self._paths()
        place = paths.index(target)
        # Later ones are damaged: a sound one would have been the start of this run.
        for path in [*paths[: max(place + 1 - self.keep, 0)], *paths[place + 1 :]]:
            shutil.rmtree(path)
        return target

    def latest(self) -> Checkpoint | None:
        """The newest complete checkpoint; damaged ones are named in the log and passed over.

        Raises:
            CheckpointError: it belongs to another identity, or its format is of another version.
        """
        for path in reversed(self._paths()):
            try:
                checkpoint = self._read(path)
            except (OSError, ValueError) as error:
                logger.warning("Checkpoint %s is damaged (%s); using the one before it.", path.name, error)
                continue
            return checkpoint
        return None

    def belongs(self) -> bool:
        """Whether the newest checkpoint, if there is one, belongs to this identity."""
        try:
            self.latest()
        except CheckpointError:
            return False
        return True

    def clear(self) -> None:
        """Remove every checkpoint: the stage starts anew."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob(f"{_PREFIX}*"))

    def _read(self, path: Path) -> Checkpoint:
        stored = read_json(path / _MANIFEST, dict[str, Any], "")
        version = stored.get("format_version", FORMAT_VERSION)
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{path} has format {version}; this davae reads {FORMAT_VERSION}. "
                f"Go on with the davae that wrote it, or pass --overwrite to start this stage anew."
            )
        manifest = parse_json(path / _MANIFEST, stored, _Manifest, "")
        if manifest.checksum not in (None, _checksum(manifest.contents)) or path.name != _name(manifest.step):
            raise ValueError(f"{_MANIFEST} is not what was written")
        for name, size in manifest.files.items():
            actual = (path / f"{name}.safetensors").stat().st_size
            if actual != size:
                raise OSError(f"{name}.safetensors has {actual} bytes, {size} were written")
        self._check_identity(manifest.identity)
        groups = {name: load_tensors(path / f"{name}.safetensors") for name in manifest.files}
        return Checkpoint(path, manifest.step, groups)

    def _check_identity(self, stored: Mapping[str, object]) -> None:
        ours = json.loads(json.dumps(self.identity))
        changed = differences(stored, ours)
        if changed:
            raise CheckpointError(
                f"The checkpoints in {self.folder} belong to other settings: {'; '.join(changed)}. "
                f"Use the old settings, give the run another name, or pass --overwrite to start this stage anew."
            )


def differences(old: object, new: object, path: str = "") -> list[str]:
    """Human-readable differences of two JSON values, for example "optim.lr: 0.0001 -> 0.0002"."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        rows: list[str] = []
        for key in sorted({*old, *new}):
            rows += differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        return rows
    return [] if old == new or are_of_other_kinds(old, new) else [f"{path}: {old} -> {new}"]


def _name(step: int) -> str:
    return f"{_PREFIX}{step:08d}"


def _checksum(manifest: Mapping[str, Any]) -> str:
    return text_hash(json.dumps(manifest, sort_keys=True))


def _write(path: Path, group: Mapping[str, Tensor]) -> int:
    """Write a file; returns its size in bytes."""
    save_tensors(group, path)
    return path.stat().st_size
