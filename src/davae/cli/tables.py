"""`davae tables`."""

import argparse
import sys
from pathlib import Path

from davae.cli.grammar import Verb


def _add_tables(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="of a table (default: all)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write them as a page, .html")


def _run(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.text import Text

    from davae.tools.tables import chosen, draw, show

    tables, console = chosen(options.names), Console()
    for part in show(tables):
        console.print(part, soft_wrap=isinstance(part, Text))  # a command is copied as one line
    if options.out is not None:
        sys.stderr.write(f"page: {draw(tables, options.out).resolve()}\n")
    return 0


VERB = Verb(
    "the paper's tables: its figures, ours where they were measured, and the commands for the rest",
    _add_tables,
    _run,
    {
        "tables s2 s3": "two of them",
        "tables --out tables.html": "all of them, also as a page",
    },
)
