"""`davae report`: results, curves and pictures of a run on one page."""

from davae.core.files import file_hash
from davae.report.page import write_report
from davae.run.execute import Stage
from davae.run.run import Run


def depends_on(run: Run) -> dict[str, str]:
    """What the page depends on."""
    results = run.folder.results
    return {"results": file_hash(results) if results.exists() else ""}


def run(run: Run) -> None:
    """Write report.html."""
    if run.is_main:
        write_report(run.folder.root)


STAGE = Stage(
    name="report",
    verb="report",
    section="evaluate",
    inputs=depends_on,
    run=run,
    output=lambda run: run.folder.report,
)
