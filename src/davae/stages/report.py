"""`davae report`: results, curves and pictures of a run on one page."""

import hashlib
from typing import Any

from davae.report.page import write_report
from davae.stages.run import Run


def inputs(run: Run) -> dict[str, Any]:
    """What the page depends on."""
    results = run.folder / "results.json"
    return {"results": hashlib.blake2b(results.read_bytes(), digest_size=16).hexdigest() if results.exists() else ""}


def work(run: Run) -> None:
    """Write report.html."""
    if run.accelerator.is_main_process:
        write_report(run.folder)
