"""One command at a time writes a folder, however many processes it has."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from accelerate.utils import broadcast_object_list

from davae.core.files import sweep_below
from davae.core.lock import LockedError, locked

LOCK = ".lock"
"""Name of the lock in the folder that it stands for."""


@contextmanager
def only_writer(folder: Path, what: str, is_main: bool) -> Iterator[None]:
    """Hold a folder while this block runs; what killed processes left unfinished in it is removed first.

    All processes of a command enter it; the main one holds the lock, and a refusal ends them all.

    Args:
        folder: made where it does not exist.
        what: is written, to begin a sentence with.
        is_main: whether this process is the main one.

    Raises:
        LockedError: another command writes there.
    """
    refusal: Exception | None = None
    with ExitStack() as stack:
        if is_main:
            try:
                stack.enter_context(locked(folder / LOCK, what))
                sweep_below(folder)
            except (LockedError, OSError) as error:
                refusal = error
        [text] = broadcast_object_list([None if refusal is None else str(refusal)])
        if refusal is not None:
            raise refusal
        if text is not None:
            raise LockedError(text)
        yield
