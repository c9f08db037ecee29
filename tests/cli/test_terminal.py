"""What people see of a command at work: bars on a terminal, lines in a log, nothing where nobody speaks."""

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from davae.cli import terminal
from davae.cli.terminal import Bars, Lines, watch

Screen = Callable[..., io.StringIO]

ROW = {"loss_base": 0.4123, "loss_detail": 1.2, "grad_norm_transformer": 3.0, "images_per_second": 52.94}


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """What is written to a terminal, or to a file."""

    def opened(is_terminal: bool, width: int = 100) -> io.StringIO:
        written = io.StringIO()
        console = Console(
            file=written, force_terminal=is_terminal, force_interactive=is_terminal, width=width, color_system=None
        )
        monkeypatch.setattr(terminal, "Console", lambda **_: console)
        return written

    return opened


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets seconds pass."""
    now = [1000.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


@pytest.mark.parametrize("is_terminal", [True, False])
def test_who_says_nothing_writes_nothing(screen: Screen, is_terminal: bool) -> None:
    written = screen(is_terminal)
    with watch():
        pass
    assert written.getvalue() == ""


def test_a_terminal_gets_bars_and_a_file_gets_lines(screen: Screen) -> None:
    screen(True)
    assert isinstance(watch(), Bars)
    screen(False)
    assert isinstance(watch(), Lines)


def test_a_log_gets_a_line_for_every_row_with_rate_and_time_left(
    screen: Screen, clock: Callable[[float], None]
) -> None:
    written = screen(False)
    with watch() as lines:
        lines.begin("finetune", 2000)
        clock(10)
        lines.advance(49)
        lines.advance(50, ROW)
        clock(380)
        lines.advance(2000, ROW)
        lines.end()
    assert written.getvalue().splitlines() == [
        "finetune  0/2,000  begins",
        "finetune  50/2,000  base 0.412  detail 1.2  52.9 images/s  6:30 left",
        "finetune  2,000/2,000  base 0.412  detail 1.2  52.9 images/s  0:00 left",
        "finetune  ended after 6:30",
    ]


def test_time_left_counts_from_where_a_stage_goes_on(screen: Screen, clock: Callable[[float], None]) -> None:
    written = screen(False)
    with watch() as lines:
        lines.begin("tokenizer", 1000, 900)
        clock(60)
        lines.advance(950, {"l1": 0.5})
    assert written.getvalue().splitlines() == [
        "tokenizer  900/1,000  goes on",
        "tokenizer  950/1,000  l1 0.5  1:00 left",
    ]


def test_work_without_values_is_logged_every_half_minute(screen: Screen, clock: Callable[[float], None]) -> None:
    written = screen(False)
    with watch() as lines:
        lines.begin("latents", 100)
        for done in range(1, 100):
            clock(1)
            lines.advance(done)
    assert [line.split("  ")[1] for line in written.getvalue().splitlines()] == [
        "0/100",
        "30/100",
        "60/100",
        "90/100",
    ]


@pytest.mark.parametrize("width", [80, 100])
def test_a_narrow_window_keeps_count_and_time_left(screen: Screen, width: int) -> None:
    written = screen(True, width)
    with watch() as bars:
        bars.begin("evaluate: base pair", 200_000)
        bars.advance(200_000, ROW)
        bars.end()
    line = written.getvalue().split("\r")[-1].splitlines()[0]
    assert "200000/200000 0:00:00 base 0.412" in line
    assert len(line.replace("\x1b[2K", "")) <= width


def test_names_are_text_and_no_markup(screen: Screen) -> None:
    written = screen(True)
    with watch() as bars:
        bars.begin("evaluate: [red]x", 1)
        bars.say("skipped [bold]photo[/bold].png")
        bars.end()
    assert "evaluate: [red]x" in written.getvalue()
    assert "skipped [bold]photo[/bold].png" in written.getvalue()


def test_the_cursor_comes_back(screen: Screen) -> None:
    written, hide, show = screen(True), "\x1b[?25l", "\x1b[?25h"
    with watch() as bars:
        assert written.getvalue() == ""
        bars.say("before")
        bars.begin("tokenizer", 3)
        bars.advance(3, {"l1": 0.5})
        bars.end()
        assert written.getvalue().startswith(hide)
    assert [written.getvalue().count(code) for code in (hide, show)] == [1, 1]
