"""`davae evaluate`."""

from typing import Any

from davae.stages.run import Run


def inputs(run: Run) -> dict[str, Any]:
    """What it depends on."""
    return {}


def work(run: Run) -> None:
    """Do it."""
    raise NotImplementedError
