"""docs/architecture.md is true: files are named, names exist, the rooms are the layers, and the walks are walked."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from types import CodeType, FrameType

import pytest
import torch

import davae
from davae.cli import build_parser, main
from davae.evaluate.speed import measure_speed
from davae.report.figures import image_grid
from tiny_text import MAX_LENGTH, tiny_text_pipeline

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "davae"
PAGE = ROOT / "docs" / "architecture.md"
TEXT = PAGE.read_text(encoding="utf-8")
LAYERS = [
    layer.replace("davae.", "").split(" | ")
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    if contract["type"] == "layers"
    for layer in contract["layers"]
]
ROOMS = [room for layer in LAYERS for room in layer]
LEVEL = {room: level for level, layer in enumerate(LAYERS) for room in layer}
BESIDE = "Beside the rooms"


def between(start: str, end: str, text: str = TEXT) -> str:
    """What stands between two lines that begin so."""
    return text.partition(f"\n{start}")[2].partition(f"\n{end}")[0]


def sections() -> dict[str, str]:
    """Text of each heading under "The rooms"."""
    _, *found = re.split(r"^### (.+)$", between("## The rooms", "## Three walks"), flags=re.MULTILINE)
    return dict(zip(found[::2], found[1::2], strict=True))


def spans(text: str) -> list[str]:
    """What stands in backticks, outside of drawings."""
    return re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


# The stack


def test_the_rooms_are_the_layers_in_their_order() -> None:
    assert list(sections()) == [*ROOMS, BESIDE]


def test_the_drawing_has_the_layers_between_its_lines() -> None:
    drawing = between("```", "```")
    groups = [
        re.findall(r"^(\w+)  ", group, re.MULTILINE) for group in re.split(r"^-+$", drawing, flags=re.MULTILINE)
    ]
    assert groups == LAYERS


def marked(walk: int) -> set[str]:
    """Rooms that the drawing marks as visited by a walk."""
    head, *lines = between("```", "```").strip("\n").splitlines()
    column = head.index(f" {walk} ") + 1 if walk < 3 else len(head) - 1
    return {line.split()[0] for line in lines if len(line) > column and line[column] == "o"}


# Files and names


def files(room: str) -> list[str]:
    """Python files of a room, by their path in it; of packages that say nothing but their docstring, none."""
    folder, pattern = (PACKAGE, "*.py") if room == BESIDE else (PACKAGE / room, "**/*.py")
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.glob(pattern)
        if path.name != "__init__.py" or len(ast.parse(path.read_text()).body) > 1
    )


@pytest.mark.parametrize("room", [*ROOMS, BESIDE])
def test_every_file_is_named(room: str) -> None:
    named = spans(sections()[room])
    missing = [file for file in files(room) if not {file, f"{file.partition('/')[0]}/"} & set(named)]
    assert not missing, f"say in docs/architecture.md, under {room}, what these are: {', '.join(missing)}"


def test_every_file_that_is_named_exists() -> None:
    found = 0
    for room, text in [(None, TEXT.partition("## The rooms")[0]), *sections().items()]:
        home = PACKAGE if room in (None, BESIDE) else PACKAGE / str(room)
        for span in spans(text):
            if "NAME" in span or not re.fullmatch(r"[\w/]+(\.(py|css)|/)", span):
                continue
            found += 1
            assert (home / span).exists() or (room is None and (ROOT / span).exists()), f"{room or 'page'}: {span}"
    assert found > 150


@cache
def members(file: Path) -> set[str]:
    """Functions, classes, assigned names and those of classes, as dotted names in a file."""
    found: set[str] = set()

    def collect(body: list[ast.stmt], before: str) -> None:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.add(before + node.name)
            if isinstance(node, ast.ClassDef):
                collect(node.body, f"{before}{node.name}.")
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            found.update(before + target.id for target in targets if isinstance(target, ast.Name))

    collect(ast.parse(file.read_text()).body, "")
    return found


def exists(name: str) -> bool:
    """Whether `room.module.function` is there; a room's own names are those of its `__init__.py`."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        place = PACKAGE.joinpath(*parts[:length])
        file = place.with_suffix(".py") if place.with_suffix(".py").is_file() else place / "__init__.py"
        if file.is_file():
            rest = ".".join(parts[length:])
            return not rest or rest in members(file)
    return False


def dotted(text: str) -> list[str]:
    """Names in backticks that begin with a room."""
    return [span for span in spans(text) if re.fullmatch(rf"(?:{'|'.join(ROOMS)})(?:\.\w+)+", span)]


def test_every_name_exists() -> None:
    names = [name for name in dotted(TEXT) if not name.endswith((".py", ".json", ".html", ".jsonl"))]
    assert len(names) > 100
    assert not [name for name in names if not exists(name)]


def test_a_wrong_name_is_caught() -> None:
    assert (
        exists("train.loop.train") and exists("models.autoencoder.AutoencoderDA.decode") and exists("stages.STAGES")
    )
    assert not exists("train.loop.trains")
    assert not exists("models.autoencoder.AutoencoderDA.decodes")
    assert not exists("train.loops.train")


def test_every_command_that_is_named_has_a_verb() -> None:
    verbs = [span.split()[1] for span in spans(TEXT) if re.match(r"davae [a-z]", span)]
    [choices] = [action.choices for action in build_parser()._subparsers._group_actions]  # type: ignore[union-attr]
    assert set(verbs) <= set(choices or ())
    assert {"generate", "cache", "finetune", "keys"} <= set(verbs)


# The walks


class Trace:
    """Which functions of the library were called, in the order of their first calls, and which calls climb."""

    def __init__(self) -> None:
        self.calls: dict[str, None] = {}
        self.climbs: set[tuple[str, str]] = set()

    def __enter__(self) -> "Trace":
        sys.setprofile(self._heed)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _heed(self, frame: FrameType, event: str, _: object) -> None:
        name = _name(frame.f_code) if event == "call" else None
        if name is None:
            return
        self.calls.setdefault(name)
        caller, before = None, frame.f_back
        while before is not None and caller is None:
            caller, before = _name(before.f_code), before.f_back
        if caller is not None and LEVEL[room_of(name)] < LEVEL[room_of(caller)]:
            self.climbs.add((room_of(caller), room_of(name)))


@cache
def _name(code: CodeType) -> str | None:
    """`room.module.function` of code in a room; None of any other."""
    path = Path(code.co_filename)
    if not path.is_relative_to(PACKAGE) or path.parent == PACKAGE:
        return None
    module = path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
    return f"{module}.{code.co_qualname}"


def room_of(name: str) -> str:
    return name.partition(".")[0]


def walk_of(number: int) -> str:
    return between(f"### {number}. ", "### ")


def steps(number: int) -> list[str]:
    """Functions in the numbered list of a walk; modules and constants are left out."""
    items = "\n".join(re.findall(r"^(?:\d\.|   ) ?.*$", walk_of(number), re.MULTILINE))
    return [name for name in dotted(items) if _is_function(name)]


def _is_function(name: str) -> bool:
    return name.rpartition(".")[2].islower() and not PACKAGE.joinpath(*name.split(".")).with_suffix(".py").is_file()


def tokenizer(recipe: Path, folder: Path) -> list[list[str]]:
    return [["train-tokenizer", str(recipe), "--runs-dir", str(folder)]]


def latent(recipe: Path, folder: Path) -> list[list[str]]:
    assert main(tokenizer(recipe, folder)[0]) == 0
    return [[verb, str(recipe), "--runs-dir", str(folder)] for verb in ("cache", "finetune")]


def prompt(recipe: Path, folder: Path) -> list[list[str]]:
    pipeline = folder / "pipeline"
    davae.upgrade(tiny_text_pipeline(), scale=2, init="random").save_pretrained(pipeline)
    options = ["--out", str(folder / "out"), "--steps", "2", "--max-length", str(MAX_LENGTH)]
    return [["generate", "a red box", "--from", str(pipeline), *options]]


@pytest.fixture(params=[(1, tokenizer), (2, latent), (3, prompt)], ids=["image", "latent", "prompt"], scope="module")
def walk(
    request: pytest.FixtureRequest, recipe: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[int, Trace]]:
    number, commands = request.param
    with torch.random.fork_rng():
        torch.manual_seed(0)
        prepared = commands(recipe, tmp_path_factory.mktemp("walk"))
        with Trace() as trace:
            statuses = [main(arguments) for arguments in prepared]
    assert not any(statuses)
    yield number, trace


@pytest.mark.filterwarnings("ignore:This AutoencoderDA has not been trained")
def test_a_walk_calls_what_it_names_in_this_order(walk: tuple[int, Trace]) -> None:
    number, trace = walk
    named, order = steps(number), {name: place for place, name in enumerate(trace.calls)}
    assert len(named) > 15
    assert not [name for name in named if name not in order], "named, and never called"
    first = [name for place, name in enumerate(named) if name not in named[:place]]
    for before, after in zip(first, first[1:], strict=False):
        assert order[before] < order[after], f"{after} is called before {before}"


@pytest.mark.filterwarnings("ignore:This AutoencoderDA has not been trained")
def test_a_walk_enters_the_rooms_that_it_says(walk: tuple[int, Trace]) -> None:
    number, _ = walk
    sentence = re.search(r"in\s+the\s+order\s+in\s+which\s+it\s+enters\s+them:\s+([\w,\s]+)\.", walk_of(number))
    assert sentence is not None
    rooms = re.split(r",\s+", sentence[1])
    assert rooms == list(dict.fromkeys(map(room_of, steps(number))))
    assert set(rooms) == marked(number)


@pytest.mark.filterwarnings("ignore:This AutoencoderDA has not been trained")
def test_a_walk_climbs_only_by_what_was_handed_down(walk: tuple[int, Trace]) -> None:
    number, trace = walk
    rows = re.findall(
        r"^\| .+? \| (\w+) \| ([\w]+) \| ([\d, ]+) \|$", between("### How often", "## none"), re.MULTILINE
    )
    allowed = {(to, given) for given, to, walks in rows if str(number) in walks}
    climbs = {("any", room) if ("any", room) in allowed else (caller, room) for caller, room in trace.climbs}
    assert climbs == allowed


def test_a_call_that_climbs_is_noticed() -> None:
    draw = partial(image_grid, torch.zeros(1, 3, 8, 8, dtype=torch.uint8), columns=1)
    with Trace() as trace:
        measure_speed({"a grid": draw}, {"a grid": 1}, 1, torch.device("cpu"), {})
    assert trace.climbs == {("evaluate", "report")}
    assert "report.figures.image_grid" in trace.calls
