"""Owner of the folder for what can be made or fetched again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$DAVAE_CACHE`, else `$XDG_CACHE_HOME/davae`, else `~/.cache/davae`; need not exist.

    Raises:
        RuntimeError: none of the variables is set, and this user has no home.
    """
    if own := os.environ.get("DAVAE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "davae"
