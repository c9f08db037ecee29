"""What a setting may be: every number has a range, in a recipe and in Python, and nothing else gets through."""

import copy
import math
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from davae.core.config import Config, Range, hints_of, marker_of, options_of, section_of
from davae.recipe import DataConfig, Recipe, RecipeError, SampleConfig, TokenizerConfig, parse_recipe
from davae.recipe.changes import keys_in_use, merge_overrides
from davae.sampling.settings import SamplerSettings
from davae.tools.generate.settings import Generation
from davae.train.settings import LoopConfig, OptimConfig
from whole_recipe import SMALLEST


def numbers(owner: type, section: str = "") -> Iterator[tuple[str, Any]]:
    """Every annotation of a number in a dataclass and its sections."""
    for name, hint in hints_of(owner).items():
        inner = section_of(hint)
        if inner is not None:
            yield from numbers(inner, f"{section}{name}.")
            continue
        options = [part for option in options_of(hint) for part in _parts(option)]
        yield from ((f"{section}{name}", part) for part in options if _bare(part) in (int, float))


def _parts(option: Any) -> tuple[Any, ...]:
    return get_args(option) if get_origin(option) is tuple else (option,)


def _bare(part: Any) -> Any:
    return get_args(part)[0] if get_origin(part) is Annotated else part


@pytest.mark.parametrize("owner", [Recipe, Generation])
def test_every_number_has_a_range(owner: type) -> None:
    found = list(numbers(owner))
    assert len(found) > 10
    assert not [name for name, part in found if marker_of(part, Range) is None]


@pytest.mark.parametrize(
    ("limits", "allowed", "refused"),
    [
        (Range(), (-1e300, 0, 3.5), (math.nan, math.inf, -math.inf, 2**64)),
        (Range(0), (0, 1e300), (-1e-9, math.inf)),
        (Range(0, above=True), (1e-300,), (0, -1)),
        (Range(0, 1, below=True), (0, 0.999), (1, -0.1, math.nan)),
        (Range(0, 1), (0, 1), (1.001,)),
    ],
)
def test_a_range_holds_what_it_says(limits: Range, allowed: tuple[float, ...], refused: tuple[float, ...]) -> None:
    assert all(value in limits for value in allowed)
    assert not any(value in limits for value in refused)


@pytest.mark.parametrize("value", [2.5, "3", True, None, [1], math.nan, 10**30, 10**5000], ids=type)
def test_what_is_no_whole_number_is_none(value: Any) -> None:
    with pytest.raises(ValueError, match="must be a whole number, at least 1; got "):
        Range(1).read(value, int)


def test_a_number_of_yaml_is_read_as_the_field_has_it() -> None:
    assert (Range(1).read(2e4, int), type(Range(1).read(2e4, int))) == (20_000, int)
    assert type(Range().read(1, float)) is float


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OptimConfig(max_grad_norm=math.nan), "max_grad_norm must be a finite number, more than 0; got nan"),
        (lambda: OptimConfig(max_grad_norm=-1.0), "max_grad_norm must be a finite number, more than 0; got -1.0"),
        (lambda: OptimConfig(betas=(0.9, 1.0)), r"betas must be a number in \[0, 1\); got 1.0"),
        (lambda: OptimConfig(betas=(0.9,)), "betas must have 2 values"),  # type: ignore[arg-type]
        (lambda: LoopConfig(steps=True, batch_size=1), "steps must be a whole number, at least 1; got True"),
        (lambda: LoopConfig(steps=1, batch_size=1, precision="fp64"), "precision must be one of fp32, bf16"),  # type: ignore[arg-type]
        (lambda: LoopConfig(steps=1, batch_size=1, optim={"lr": 1}), "optim must be OptimConfig"),  # type: ignore[arg-type]
        (lambda: LoopConfig(steps=1, batch_size=1, ema_ramp="no"), "ema_ramp must be true or false"),  # type: ignore[arg-type]
        (lambda: TokenizerConfig(steps=1, batch_size=1, scale=0), "scale must be one of 2, 4; got 0"),  # type: ignore[arg-type]
        (lambda: SamplerSettings(guidance_scale=math.nan), "guidance_scale must be a finite number, at least 0"),
        (lambda: SamplerSettings(guidance_interval=(0.5, 0.5)), "two times in order"),
        (lambda: Generation(guidance_interval=(0.5, 0.5)), "two times in order"),
        (lambda: Generation(steps=0), "steps must be a whole number, at least 1"),
        (lambda: SampleConfig(prompts=""), "prompts must name a file or folder; got ''"),
        (lambda: DataConfig(path="a\0b"), "path must name a file or folder"),
    ],
)
def test_python_is_refused_what_recipes_are(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_numbers_among_the_arguments_of_a_model_are_finite() -> None:
    values = copy.deepcopy(SMALLEST)
    values["pretrain"]["autoencoder"]["model_config"] = {"scaling_factor": [1.0, math.nan]}
    with pytest.raises(RecipeError, match="model_config must hold finite numbers; got nan"):
        parse_recipe(values)


def test_the_home_folder_is_in_paths_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    values = merge_overrides(
        SMALLEST,
        [
            *("data.path=~/photos", "pair=~/pair", "tokenizer.perceptual.vgg=~/vgg.pth", "cache={from: ~/runs/one}"),
            *("realism=null", "sample.prompts=./~here", "finetune.preview.prompts=[~/x]"),
        ],
    )
    recipe = parse_recipe(values)
    assert recipe.data is not None and recipe.tokenizer is not None and recipe.finetune is not None
    assert (
        recipe.tokenizer.perceptual is not None and recipe.finetune.preview is not None and recipe.sample is not None
    )
    assert recipe.data.path == "/home/someone/photos"
    assert recipe.pair == "/home/someone/pair"
    assert recipe.tokenizer.perceptual.vgg == "/home/someone/vgg.pth"
    assert recipe.reuse == {"cache": "/home/someone/runs/one"}
    assert recipe.sample.prompts == "./~here"
    assert recipe.finetune.preview.prompts == ("~/x",)


LEAVES = sorted(keys_in_use(Recipe, SMALLEST))
WRONG = st.one_of(
    st.sampled_from([math.nan, math.inf, -math.inf, -1, 0, 1, 2.5, 10**30, 10**5000, -(10**400), 1e308, True, False]),
    st.sampled_from([None, "", "x", "3", "no", "\0", "~", [], [1], [[]], {}, {"from": None}, {"a": 1}, ["a", None]]),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
)


def placed(leaf: str, value: Any) -> dict[str, Any]:
    """The recipe with a value at a leaf."""
    values = copy.deepcopy(SMALLEST)
    *parents, last = leaf.split(".")
    place = values
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    return values


@settings(max_examples=300, deadline=None)
@given(leaf=st.sampled_from(LEAVES), value=WRONG)
def test_any_value_at_any_key_makes_a_recipe_or_is_refused(leaf: str, value: Any) -> None:
    try:
        recipe = parse_recipe(placed(leaf, value))
    except RecipeError as error:
        assert len(str(error)) < 2000
        return
    for name, found in _numbers_in(recipe):
        assert math.isfinite(found), name


@settings(max_examples=100, deadline=None)
@given(leaf=st.sampled_from(LEAVES), text=st.text(max_size=12))
def test_any_text_at_any_key_of_the_command_line_makes_a_recipe_or_is_refused(leaf: str, text: str) -> None:
    try:
        parse_recipe(merge_overrides(SMALLEST, [f"{leaf}={text}"]))
    except RecipeError:
        return


def _numbers_in(config: Config) -> Iterator[tuple[str, float]]:
    for name in hints_of(type(config)):
        value = getattr(config, name)
        if isinstance(value, Config):
            yield from _numbers_in(value)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, float) or (isinstance(item, int) and abs(item) < 2**63):
                yield name, item


def test_what_is_written_is_read_again() -> None:
    values = placed("data.path", "2024-01-01")
    values["finetune"]["preview"]["prompts"] = ["no", "a fox: red", "007"]
    recipe = parse_recipe(values)
    from davae.recipe import dump_recipe

    assert parse_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe
