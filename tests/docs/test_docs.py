"""What the documents tell people to type is right: commands parse, recipes exist, overrides are valid."""

import re
import shlex
from pathlib import Path

import pytest

from davae.cli import build_parser
from davae.recipe import load_recipe, shipped_recipes

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LAUNCHER = re.compile(r"^(?:\$ )?(?:(?:accelerate launch|torchrun|python3?)\b.*? -m )?davae (?P<rest>.*)$")
EXITS = {"--help", "-h", "--version"}


def _indented(text: str) -> str:
    """Lines of the other kind of code block: four spaces."""
    outside = FENCE.sub("", text)
    return "\n".join(line.strip() for line in outside.splitlines() if line.startswith("    "))


def commands(text: str) -> list[list[str]]:
    """Arguments of every `davae ...` line in the code blocks of a page."""
    code = "\n".join([*FENCE.findall(text), _indented(text)]).replace("\\\n", " ")
    found = []
    for line in code.splitlines():
        match = LAUNCHER.match(line.strip())
        if match:
            found.append(shlex.split(match["rest"], comments=True))
    return found


def overrides(text: str) -> list[list[str]]:
    """Arguments of every `davae ...` in backticks that sets recipe entries."""
    return [shlex.split(span)[1:] for span in re.findall(r"`(davae [^`]* --set [^`]*)`", text)]


CASES = [(page.relative_to(ROOT), arguments) for page in PAGES for arguments in commands(page.read_text())]


@pytest.mark.parametrize(("page", "arguments"), CASES, ids=[f"{page}: {' '.join(a)}" for page, a in CASES])
def test_every_command_in_a_code_block_parses(page: Path, arguments: list[str]) -> None:
    if EXITS & set(arguments):
        with pytest.raises(SystemExit) as stop:
            build_parser().parse_args(arguments)
        assert stop.value.code == 0
        return
    options = build_parser().parse_args(arguments)
    recipe = getattr(options, "recipe", None)
    if recipe in shipped_recipes():
        load_recipe(recipe, options.set)


def test_commands_are_found_where_people_write_them() -> None:
    text = "```bash\n$ davae demo --quick  # two minutes\nls\ndavae run \\\n  RECIPE --set seed=1\n```\n\n"
    text += "    davae demo\n"
    text += "    accelerate launch --num_processes 2 -m davae finetune RECIPE\n"
    assert commands(text) == [
        ["demo", "--quick"],
        ["run", "RECIPE", "--set", "seed=1"],
        ["demo"],
        ["finetune", "RECIPE"],
    ]


def test_a_wrong_command_is_caught(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(commands("```\ndavae finetoon RECIPE\n```")[0])
    assert "finetune" in capsys.readouterr().err


def test_overrides_in_the_paper_map_are_valid_recipe_entries() -> None:
    cases = overrides((ROOT / "docs" / "paper-map.md").read_text())
    assert cases
    for arguments in cases:
        load_recipe("demo", build_parser().parse_args(arguments).set)


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_concepts_names_files_that_exist() -> None:
    for span in re.findall(r"`((?:src|docs|tests)/[\w./-]+)`", (ROOT / "docs" / "concepts.md").read_text()):
        assert (ROOT / span).exists(), span
