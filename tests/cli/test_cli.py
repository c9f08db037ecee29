"""The command line: what it explains, what it refuses, and that asking costs nothing."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from davae.backbones.public import PUBLIC
from davae.cli import STAGE_VERBS, TOOLS, build_parser, convert, doctor, main
from davae.cli import recipe as recipe_verbs
from davae.cli.recipe import load
from davae.convert.dispatch import KINDS
from davae.evaluate.gpus import GPUS
from davae.recipe import load_recipe, parse_recipe
from davae.stages import STAGES

VERBS = ["demo", "run", *STAGE_VERBS]
RECIPE = """
name: tiny
data: {kind: solids, count: 36, test_count: 18}
pair: nowhere
image_size: 32
tokenizer: {steps: 2, batch_size: 4}
cache: {}
finetune: {steps: 2, batch_size: 4}
sample: {count: 4}
evaluate: {}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def davae(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit status and everything that was printed."""
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = int(stop.code or 0)
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def test_help_explains_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = davae(capsys, "--help")
    assert status == 0
    for verb in VERBS:
        assert re.search(rf"^ +{verb}\s+\w+", text, re.MULTILINE), verb
    assert set(STAGE_VERBS) == {stage.verb for stage in STAGES}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_the_common_options(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    status, text = davae(capsys, verb, "--help")
    assert status == 0
    for option in ("--set KEY=VALUE", "--overlay FILE", "--quick", "--runs-dir", "--dry-run", "--overwrite"):
        assert option in text


EXAMPLES = [line for verb in {**recipe_verbs.VERBS, **TOOLS}.values() for line in verb.examples]


@pytest.mark.parametrize("line", EXAMPLES)
def test_the_examples_of_the_help_can_be_typed(line: str) -> None:
    assert build_parser().parse_args(shlex.split(line)).verb == line.split(maxsplit=1)[0]


@pytest.mark.parametrize("verb", [*recipe_verbs.VERBS, *TOOLS])
def test_help_of_every_verb_has_examples(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    status, text = davae(capsys, verb, "--help")
    assert status == 0
    assert "examples:\n  # " in text
    assert f"\n  davae {verb}" in text


def test_values_in_the_help_are_those_that_are_known() -> None:
    assert tuple(KINDS) == convert.KINDS
    assert tuple(GPUS) == doctor.GPUS
    assert tuple(PUBLIC) == doctor.MODELS


def test_a_misspelt_option_is_answered_with_the_right_one(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = davae(capsys, "run", "recipe.yaml", "--overwite")
    assert status == 2
    assert "Did you mean '--overwrite'?" in text


@pytest.mark.parametrize("arguments", [["--help"], ["finetoon", "recipe.yaml"], ["--version"], []], ids=" ".join)
def test_asking_imports_nothing_heavy(arguments: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "davae", *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == (0 if arguments[:1] in (["--help"], ["--version"]) else 2)
    imported = set(re.findall(r"^import time:[\s\d|]*\|\s*(\w+)", answer.stderr, re.MULTILINE))
    assert "davae" in imported
    assert not imported & {"torch", "diffusers", "transformers", "accelerate", "numpy", "pydantic", "yaml", "rich"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "nowhere.yaml"],
        ["run", "sd35m-1k", "--set", "tokenizer.stepz=1"],
        ["sample", "solids-pair", "--set", "sample.steps=0"],
        ["doctor", "demo", "--quick", "--set", "name=a b"],
        ["export", "demo", "folder", "--overlay", "nowhere.yaml"],
        ["generate", "a fox", "--from", "sd35m-1k", "--out", "out", "--set", "seed=x"],
        ["keys", "finetune.stepz"],
    ],
    ids=" ".join,
)
def test_a_refused_recipe_imports_nothing_heavy(arguments: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "davae", *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    assert re.search(r"^davae: ", answer.stderr, re.MULTILINE)
    imported = set(re.findall(r"^import time:[\s\d|]*\|\s*(\w+)", answer.stderr, re.MULTILINE))
    assert not imported & {"torch", "diffusers", "transformers", "accelerate", "numpy", "safetensors", "rich"}


@pytest.mark.parametrize(
    ("given", "meant"),
    [("finetun", "finetune"), ("train-tokeniser", "train-tokenizer"), ("Run", "run"), ("reports", "report")],
)
def test_a_misspelt_verb_is_answered_with_the_right_one(
    capsys: pytest.CaptureFixture[str], given: str, meant: str
) -> None:
    status, text = davae(capsys, given, "recipe.yaml")
    assert status == 2
    assert f"unknown command '{given}'. Did you mean '{meant}'?" in text
    assert "davae --help" in text


def test_a_verb_that_resembles_none_still_leads_to_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = davae(capsys, "zzzzzz")
    assert status == 2
    assert "Did you mean" not in text
    assert "'davae --help' lists the commands" in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run"], "required: recipe"),
        ([], "required: COMMAND"),
        (["demo", "--fast"], "unrecognized arguments: --fast"),
    ],
    ids=["no recipe", "no verb", "wrong option"],
)
def test_wrong_usage_is_named(capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str) -> None:
    status, text = davae(capsys, *arguments)
    assert status == 2
    assert expected in text


def test_a_dry_run_prints_the_resolved_recipe_and_the_stages_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], recipe: Path, tmp_path: Path
) -> None:
    arguments = ["run", recipe, "--dry-run", "--runs-dir", tmp_path / "runs", "--set", "finetune.optim.lr=5e-4"]
    assert main([str(argument) for argument in arguments]) == 0
    printed = capsys.readouterr()
    assert parse_recipe(yaml.safe_load(printed.out)) == load_recipe(recipe, ["finetune.optim.lr=5e-4"])
    stages = ["tokenizer", "cache", "finetune", "sample", "evaluate", "report"]
    assert re.findall(r"would run\s+(\S+)", printed.err) == stages
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_a_dry_run_of_one_verb_names_its_stages_alone(
    capsys: pytest.CaptureFixture[str], recipe: Path, tmp_path: Path
) -> None:
    _, text = davae(capsys, "cache", recipe, "--dry-run", "--runs-dir", tmp_path / "runs")
    assert re.findall(r"would run\s+(\S+)", text) == ["cache"]


@pytest.mark.parametrize("arguments", [[], ["--quick"]], ids=["whole", "quick"])
def test_the_demo_has_every_stage(capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str]) -> None:
    status, text = davae(capsys, "demo", *arguments, "--dry-run", "--runs-dir", tmp_path / "runs")
    assert status == 0
    assert re.findall(r"would run\s+(\S+)", text) == [
        "tokenizer",
        "cache",
        "finetune",
        "sample",
        "evaluate",
        "report",
    ]
    assert ("name: demo-quick" in text) == bool(arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["finetune.stepz=3"], "finetune.stepz: unknown key; did you mean 'steps'?"),
        (["finetun.steps=3"], "finetun: unknown key; did you mean 'finetune'?"),
        (["finetune.steps=many"], "finetune.steps: "),
        (["finetune"], "--set takes KEY=VALUE"),
        (["sample.count=[1"], "--set sample.count: '[1' is not valid YAML"),
        (["image_size=33"], "multiple of the scale 2; got 33"),
        (["seed=abc", "finetune.stepz=3"], "did you mean 'steps'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_setting_is_explained(
    capsys: pytest.CaptureFixture[str], recipe: Path, tmp_path: Path, settings: list[str], expected: str
) -> None:
    flags = [text for setting in settings for text in ("--set", setting)]
    status, text = davae(capsys, "run", recipe, "--runs-dir", tmp_path / "runs", *flags)
    assert status == 1
    assert text.startswith("davae: ")
    assert expected in text
    assert "pydantic" not in text
    assert not (tmp_path / "runs").exists()


def test_a_missing_recipe_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    missing = tmp_path / "nowhere.yaml"
    status, text = davae(capsys, "run", missing)
    assert status == 1
    assert text.startswith(f"davae: There is no recipe {missing}. Give a YAML file, the folder of a run, or")
    assert text.count("\n") == 1


@pytest.mark.parametrize("content", ["", "name: [1", "\x00", "just words"])
def test_a_broken_recipe_is_named_without_a_traceback(
    capsys: pytest.CaptureFixture[str], recipe: Path, content: str
) -> None:
    recipe.write_text(content)
    status, text = davae(capsys, "run", recipe)
    assert status == 1
    assert text.startswith(f"davae: {recipe}")


def test_a_missing_pair_is_named_with_the_remedy(
    capsys: pytest.CaptureFixture[str], recipe: Path, tmp_path: Path
) -> None:
    status, text = davae(capsys, "run", recipe, "--runs-dir", tmp_path / "runs")
    assert status == 1
    assert "no pretrained pair in nowhere: model_index.json is missing. Give the folder of a saved pipeline" in text


def test_a_verb_without_its_section_is_refused(
    capsys: pytest.CaptureFixture[str], recipe: Path, tmp_path: Path
) -> None:
    status, text = davae(capsys, "pretrain", recipe, "--runs-dir", tmp_path / "runs")
    assert status == 1
    assert "'pretrain' needs the section pretrain, which recipe tiny lacks" in text


def test_python_m_davae_exits_with_the_status(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "davae", "run", str(tmp_path / "nowhere.yaml")]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    assert answer.stderr.startswith("davae: There is no recipe")
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize(("rank", "says"), [(None, True), ("0", True), ("1", False), ("7", False)])
def test_of_several_processes_one_names_the_error(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    rank: str | None,
    says: bool,
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    status, text = davae(capsys, "run", tmp_path / "nowhere.yaml")
    assert status == 1
    assert ("There is no recipe" in text) == says
    assert bool(text) == says


def test_settings_may_be_given_many_times() -> None:
    options = build_parser().parse_args(["run", "r.yaml", "--set", "a=1", "--set", "b.c=2"])
    assert options.set == ["a=1", "b.c=2"]
    assert options.runs_dir is None


def test_a_path_after_an_equals_sign_knows_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    options = build_parser().parse_args(["generate", "x", "--from=~/pair", "--out=~/out", "--runs-dir=~/runs"])
    assert options.source == "/home/someone/pair"
    assert (options.out, options.runs_dir) == (Path("/home/someone/out"), Path("/home/someone/runs"))


def test_a_run_stays_where_it_is(
    capsys: pytest.CaptureFixture[str], recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs" / "copied"
    run.mkdir(parents=True)
    recipe.rename(run / "recipe.yaml")
    (run / "run.json").write_text('{"name": "tiny", "stages": {}}')
    monkeypatch.chdir(run)
    status, text = davae(capsys, "run", ".", "--dry-run")
    assert status == 0 and "name: copied" in text
    options = build_parser().parse_args(["run", "../copied", "--set", "name=beside"])
    loaded, runs = load(options)
    assert (loaded.name, runs) == ("beside", tmp_path / "runs")
    status, text = davae(capsys, "run", ".", "--runs-dir", tmp_path)
    assert status == 1 and f"stays in {tmp_path / 'runs'}; got --runs-dir {tmp_path}. Leave it out" in text
