"""What verbs are made of, and a parser that suggests the nearest one."""

import argparse
import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn


@dataclass(frozen=True)
class Verb:
    """A command of `davae`."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    """Does it and returns the exit status; imports what it needs."""


class Parser(argparse.ArgumentParser):
    """argparse that suggests the nearest verb."""

    def error(self, message: str) -> NoReturn:
        """One line and status 2."""
        if "invalid choice" in message and self._subparsers is not None:
            given = message.split("invalid choice: ")[1].split("'")[1]
            known = [name for action in self._subparsers._group_actions for name in action.choices or ()]
            if given not in known:
                close = difflib.get_close_matches(given, known, n=1)
                hint = f" Did you mean '{close[0]}'?" if close else ""
                message = f"unknown command '{given}'.{hint} 'davae --help' lists the commands."
        self.exit(2, f"davae: {message}\n")
