"""Progress bars: what one process shows, and that a silent one leaves the terminal alone."""

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from davae.cli import terminal
from davae.cli.terminal import ProgressBars

Screen = Callable[[bool], io.StringIO]


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """What is written to a terminal, or to a file."""

    def opened(is_terminal: bool) -> io.StringIO:
        written = io.StringIO()
        console = Console(file=written, force_terminal=is_terminal, force_interactive=is_terminal, width=100)
        monkeypatch.setattr(terminal, "Console", lambda **_: console)
        return written

    return opened


@pytest.mark.parametrize("is_terminal", [True, False])
def test_who_says_nothing_writes_nothing(screen: Screen, is_terminal: bool) -> None:
    written = screen(is_terminal)
    with ProgressBars():
        pass
    assert written.getvalue() == ""


def use(bars: ProgressBars) -> None:
    bars.say("before")
    bars.begin("tokenizer", 3)
    bars.advance(3, {"l1": 0.5})
    bars.end()
    bars.say("after")


def test_lines_and_bars_are_drawn(screen: Screen) -> None:
    written = screen(False)
    with ProgressBars() as bars:
        use(bars)
    before, after, bar, end = written.getvalue().split("\n")
    assert (before, after, end) == ("before", "after", "")
    assert bar.startswith("tokenizer   ")
    assert "3/3" in bar
    assert "l1 0.5" in bar


def test_the_cursor_comes_back(screen: Screen) -> None:
    written, hide, show = screen(True), "\x1b[?25l", "\x1b[?25h"
    with ProgressBars() as bars:
        assert written.getvalue() == ""
        use(bars)
        assert written.getvalue().startswith(hide)
    assert [written.getvalue().count(code) for code in (hide, show)] == [1, 1]
