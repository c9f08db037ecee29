"""Enlarging by another program: a folder of PNG files in, a folder of images out, nothing taken on trust.

The program is started from a list of arguments, never through a shell.
"""

import os
import re
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from davae.data.decode import IMAGE_SUFFIXES, UnusableImage, decode_image
from davae.sampling.upscaling.upscaler import Size

TIMEOUT = 3600.0
"""Seconds that a call may take."""
_PLACES = ("input", "output", "size", "height", "width")
_PIXELS_AT_ONCE = 1 << 30
"""Such a program loads its weights in every call, so a call brings as much as memory holds: 3 GB of pixels."""
_SHOWN_LINES, _SHOWN_BYTES = 8, 4096
"""Of what a program said before it failed."""


@dataclass(frozen=True)
class Command:
    """An `Upscaler` by another program.

    Args:
        template: its command line. {input} and {output} are folders, {height} and {width} the size of the images that
            it has to write, {size} the shorter of the two.
        timeout: seconds that a call may take.

    Raises:
        ValueError: the command line cannot be read, or lacks a folder.
    """

    template: str
    timeout: float = TIMEOUT
    scale = None

    def __post_init__(self) -> None:
        words = self._words
        places = {place for word in words for place in re.findall(r"\{(\w*)\}", word)}
        if unknown := sorted(places - set(_PLACES)):
            allowed = ", ".join(f"{{{place}}}" for place in _PLACES)
            raise ValueError(f"The command {self.template!r} has {{{unknown[0]}}}; allowed are {allowed}.")
        if not words or not {"input", "output"} <= places:
            raise ValueError(
                f"A command needs a program, {{input}} and {{output}}; got {self.template!r}. For example: "
                f"'prog --in {{input}} --out {{output}} --size {{size}}'."
            )

    @property
    def name(self) -> str:
        """See `Upscaler`."""
        return Path(self._words[0]).name

    @property
    def identity(self) -> Mapping[str, Any]:
        """See `Upscaler`. What weights the program has, nobody can tell from here."""
        return {"upscaler": "command", "command": self.template}

    def images_at_once(self, size: Size) -> int:
        """See `Upscaler`."""
        return max(1, _PIXELS_AT_ONCE // (size[0] * size[1]))

    def __call__(self, images: Tensor, size: Size) -> Tensor:
        """See `Upscaler`.

        Raises:
            ValueError: the program failed, took too long, or wrote something other than the images asked for.
        """
        with tempfile.TemporaryDirectory(prefix="davae-upscale-") as scratch:
            inputs, outputs = Path(scratch) / "in", Path(scratch) / "out"
            inputs.mkdir()
            outputs.mkdir()
            names = [f"{index:06d}" for index in range(len(images))]
            for name, image in zip(names, images.cpu(), strict=True):
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(inputs / f"{name}.png", compress_level=1)
            values = {"input": inputs, "output": outputs, "size": min(size), "height": size[0], "width": size[1]}
            self._run([_filled(word, values) for word in self._words], Path(scratch) / "said")
            return torch.stack([self._read(file, size) for file in self._written(outputs, names)])

    @property
    def _words(self) -> list[str]:
        try:
            return shlex.split(self.template)
        except ValueError as error:
            raise ValueError(f"The command {self.template!r} cannot be read: {error}.") from None

    def _run(self, arguments: Sequence[str], said: Path) -> None:
        """Run it to its end; it goes with everything that it started where it takes too long or we are stopped."""
        with said.open("wb") as stream:
            try:
                process = subprocess.Popen(
                    arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise ValueError(f"Cannot start {arguments[0]!r}: {error.strerror}. Check the command.") from None
            try:
                status = process.wait(self.timeout)
            except subprocess.TimeoutExpired:
                raise ValueError(
                    f"{self.name} took longer than {self.timeout:g} s and was stopped.{_last_words(said)}"
                ) from None
            finally:
                _end(process)
        if status != 0:
            raise ValueError(f"{self.name} failed with status {status}.{_last_words(said)}")

    def _written(self, folder: Path, names: Sequence[str]) -> list[Path]:
        """The file of each name."""
        files = {file.stem: file for file in sorted(folder.iterdir()) if file.suffix.lower() in IMAGE_SUFFIXES}
        missing, others = [name for name in names if name not in files], sorted(set(files) - set(names))
        if missing or others:
            what = [f"{len(missing)} are missing, the first {missing[0]}"] if missing else []
            what += [f"{len(others)} have other names, the first {files[others[0]].name}"] if others else []
            raise ValueError(
                f"{self.name} was to write {len(names)} images named as those it got; it wrote {len(files)}: "
                f"{'; '.join(what)}."
            )
        return [files[name] for name in names]

    def _read(self, file: Path, size: Size) -> Tensor:
        try:
            image = decode_image(file.read_bytes(), file.name)
        except UnusableImage as error:
            raise ValueError(f"{self.name} wrote an image that cannot be read: {error}.") from None
        if image.size != size[::-1]:
            raise ValueError(
                f"{self.name} wrote {file.name} as {image.width}x{image.height}; asked for was {size[1]}x{size[0]}."
            )
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _filled(word: str, values: Mapping[str, object]) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: str(values[match[1]]), word)


def _end(process: subprocess.Popen) -> None:
    """The program and what it started, where it runs still."""
    if process.poll() is None:
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()


def _last_words(said: Path) -> str:
    """The last lines of what a program said."""
    with said.open("rb") as stream:
        stream.seek(max(0, said.stat().st_size - _SHOWN_BYTES))
        lines = [line.rstrip() for line in stream.read().decode(errors="replace").splitlines() if line.strip()]
    return " It said:\n  " + "\n  ".join(lines[-_SHOWN_LINES:]) if lines else " It said nothing."
