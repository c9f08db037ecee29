"""What verbs are made of, and a parser that suggests the nearest one."""

import argparse
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn


@dataclass(frozen=True)
class Verb:
    """A command of `davae`."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    """Does it and returns the exit status; imports what it needs."""
    examples: Mapping[str, str]
    """Command lines without `davae`, each with what it is good for. They stand under the help."""

    @property
    def epilog(self) -> str:
        """The examples as people read them."""
        return "\n".join(["examples:", *(f"  # {what}\n  davae {line}" for line, what in self.examples.items())])


def path(text: str) -> Path:
    """A path of the command line; "~" at its start is the home folder, also after "=", where no shell sees to it."""
    return Path(text).expanduser()


def path_or_name(text: str) -> str:
    """A path, likewise, or a name on the hub."""
    return str(Path(text).expanduser()) if text.startswith("~") else text


def given(options: argparse.Namespace, *names: str) -> list[str]:
    """Those of some options that the command line has, as they are written: "--batch-size"."""
    values = {name: getattr(options, name, None) for name in names}
    return [f"--{name.replace('_', '-')}" for name, value in values.items() if value not in (None, False, [], "")]


def names_of(text: str) -> list[str]:
    """The names in a list with commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


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
        elif message.startswith("unrecognized arguments: "):
            message = f"{message}.{self._nearest(message.split()[2])} 'davae COMMAND --help' lists the options."
        self.exit(2, f"davae: {message}\n")

    def _nearest(self, given: str) -> str:
        """A hint at the option that was meant, among those of all commands."""
        verbs = {} if self._subparsers is None else self._subparsers._group_actions[0].choices
        parsers = [*verbs.values()] if isinstance(verbs, dict) else []
        known = {option for parser in parsers for action in parser._actions for option in action.option_strings}
        close = difflib.get_close_matches(given.partition("=")[0], sorted(known), n=1)
        return f" Did you mean '{close[0]}'?" if close else ""
