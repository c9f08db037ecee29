"""Owner of where a class may come from that a saved file names: three libraries, and nothing else on this machine."""

import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers

LIBRARIES: dict[str, ModuleType] = {
    name: importlib.import_module(name) for name in ("diffusers", "transformers", "davae")
}
"""By the names that files give. They are modules already: no name in a file is ever imported."""
_PICKS_ANOTHER = re.compile(r"Auto[A-Z]")  # AutoModel, AutoTokenizer; not AutoencoderKL


def library_of(file: Path, library: object, class_name: object) -> ModuleType:
    """The module that should have a class.

    Args:
        file: that names the class, for the error.
        library: a key of `LIBRARIES`, or a package of diffusers' pipelines by its last name, which diffusers stores
            for a class that is defined there (a safety checker).
        class_name: of the class.

    Raises:
        ValueError: the library is another one, the names are no text, or the class is one that picks another.
    """
    if isinstance(class_name, str) and _PICKS_ANOTHER.match(class_name):
        raise ValueError(
            f"Cannot open what {file} describes: it names {class_name!r} of {library!r}, which picks a class by what "
            f"other files say. Name the class itself."
        )
    if isinstance(library, str) and isinstance(class_name, str):
        if library in LIBRARIES:
            return LIBRARIES[library]
        package = getattr(diffusers.pipelines, library, None)
        if isinstance(package, ModuleType) and package.__name__ == f"{diffusers.pipelines.__name__}.{library}":
            return package
    raise ValueError(
        f"Cannot open what {file} describes: it names the class {class_name!r} of {library!r}; allowed libraries are "
        f"{', '.join(LIBRARIES)}, because a saved model brings no code along. Name one of their classes."
    )


def home_of(class_name: object) -> str:
    """The library of a class that a file names alone: davae where the name is one of ours, else diffusers."""
    return "davae" if class_name in LIBRARIES["davae"].__all__ else "diffusers"


def stored_class(file: Path, library: str, name: str, kind: type) -> Any:
    """A class by the names that a saved file gives.

    Args:
        file: see `library_of`.
        library: see `library_of`.
        name: of the class.
        kind: its base class.

    Raises:
        ValueError: the library is not allowed, or has no such class.
    """
    found = getattr(library_of(file, library, name), name, None)
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise ValueError(
            f"Cannot open what {file} describes: it names {name!r} of {library}, which has no {kind.__name__} of "
            f"this name. Correct it, or install a version of {library} that has one."
        )
    return found
