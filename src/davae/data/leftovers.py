"""What a killed process left of files that it was writing: `.NAME.MACHINE.PID.tmp`, see `core.files`.

Earlier versions wrote `.NAME.PID.tmp` and `.NAME.tmp`.
"""

import re
from collections.abc import Collection
from pathlib import Path


def remove_leftovers(folder: Path, name: str | None = None, spare: Collection[str] = ()) -> None:
    """Remove unfinished files from a folder, which need not exist.

    Whether their process runs is not asked, as `core.files.sweep` does: it may have run on another machine.

    Args:
        folder: where they lie.
        name: of the file to be; None stands for every name.
        spare: names of files that others write now.
    """
    for file in folder.glob(".*.tmp"):
        if (name is None or _becomes(file, name)) and not any(_becomes(file, other) for other in spare):
            file.unlink(missing_ok=True)


def _becomes(file: Path, name: str) -> bool:
    return re.fullmatch(rf"\.{re.escape(name)}(\.[^.]+)?(\.\d+)?\.tmp", file.name) is not None
