"""Recipes: what is merged, what is refused and how the refusal helps, and that nothing is lost on the way."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from davae.recipe import RecipeError, dump_recipe, load_recipe, merge_overrides, parse_recipe

ROOT = Path(__file__).parents[1]
SHIPPED = sorted((ROOT / "src" / "davae" / "recipes").glob("*.yaml"))

MINIMAL = """
name: tiny
data: {kind: solids, count: 36, test_count: 18}
image_size: 32
tokenizer: {steps: 2, batch_size: 4}
cache: {}
finetune:
  steps: 2
  batch_size: 4
  optim: {lr: 1.0e-3}
sample: {count: 4}
evaluate: {}
"""

PRETRAIN = (
    "pretrain={image_size: 16, autoencoder: {model: AutoencoderDC, model_config: {}, steps: 1, batch_size: 1}, "
    "transformer: {model_config: {}, steps: 1, batch_size: 1}}"
)


def parse(*overrides: str, text: str = MINIMAL) -> Any:
    return parse_recipe(merge_overrides(yaml.safe_load(text), overrides))


def refusal(*overrides: str, text: str = MINIMAL) -> str:
    with pytest.raises(RecipeError) as caught:
        parse(*overrides, text=text)
    return str(caught.value)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_parse_and_survive_a_round_trip(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe


def test_there_are_shipped_recipes() -> None:
    assert {"demo", "demo-quick", "solids-pair"} <= {path.stem for path in SHIPPED}


def test_a_dump_writes_every_default_out() -> None:
    dumped = yaml.safe_load(dump_recipe(parse()))
    assert dumped["finetune"]["optim"] == {
        "lr": 1e-3,
        "betas": [0.9, 0.95],
        "weight_decay": 0.0,
        "warmup_steps": 0,
        "final_lr_factor": 1.0,
        "max_grad_norm": None,
    }
    assert dumped["tokenizer"]["detail_dropout"] == 0.1
    assert dumped["sample"]["guidance_interval"] == [0.0, 1.0]
    assert "pretrain" not in dumped
    assert "reuse" not in dumped


def test_a_round_trip_keeps_what_is_taken_from_other_runs() -> None:
    recipe = parse("tokenizer={from: runs/one}", "cache={from: runs/two}")
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe
    assert yaml.safe_load(dump_recipe(recipe))["tokenizer"] == {"from": "runs/one"}


@pytest.mark.parametrize(
    ("override", "where", "suggestion"),
    [
        ("finetun.steps=3", "finetun", "'finetune'"),
        ("finetune.stepz=3", "finetune.stepz", "'steps'"),
        ("finetune.optim.learning_rat=3", "finetune.optim.learning_rat", "known keys: lr, betas"),
        ("finetune.optim.warmup_step=3", "finetune.optim.warmup_step", "'warmup_steps'"),
        ("finetune.lora.rnk=4", "finetune.lora.rnk", "'rank'"),
        ("tokenizer.adversarial.weigth=3", "tokenizer.adversarial.weigth", "'weight'"),
        ("tokenizer.align_wieght=3", "tokenizer.align_wieght", "'align_weight'"),
        ("data.knd=solids", "data.knd", "'kind'"),
        ("zzz=1", "zzz", "known keys: name, data"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_one(override: str, where: str, suggestion: str) -> None:
    message = refusal(override)
    (line,) = [line for line in message.splitlines() if "unknown key" in line]
    assert line.strip().startswith(f"{where}: unknown key")
    assert suggestion in line
    assert "reuse" not in message  # how `from` is kept is nobody's business


def test_every_problem_is_listed_at_once() -> None:
    message = refusal("finetune.stepz=3", "tokenizer.steps=many", "sample.precision=fp16", "seed=abc")
    for where in ("finetune.stepz", "tokenizer.steps", "sample.precision", "seed"):
        assert f"\n  {where}: " in message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("finetune.steps=many", "finetune.steps: must be a whole number, at least 1; got 'many'"),
        ("finetune.steps=1.5", "finetune.steps: must be a whole number, at least 1; got 1.5"),
        ("finetune.flips=maybe", "finetune.flips: must be true or false; got 'maybe'"),
        ("finetune.optim.betas=[0.9]", r"finetune.optim.betas.1: .*required"),
        ("finetune.precision=fp16", "finetune.precision: must be 'fp32' or 'bf16'; got 'fp16'"),
        ("finetune.init=zeros", "finetune.init: .*'zero', 'random' or 'repeat'"),
        ("finetune=3", "finetune: must be a section; got 3"),
        ("data=", "section tokenizer needs section data"),
        ("name=", "name is the run's folder: .*; got ''"),
        ("data.kind=solid", "data.kind: .*'solids'"),
        ("data.kind=folder", "data: data.kind folder needs data.path"),
        ("data.kind=auto", "data: data needs a path, or kind: solids"),
        ("finetune.steps=0", "finetune.steps: must be a whole number, at least 1; got 0"),
        ("finetune.accumulation=3", "finetune: batch_size must be a multiple of accumulation 3; got 4"),
        ("finetune.ema_decay=1.0", r"finetune.ema_decay: must be a number in \[0, 1\); got 1.0"),
        ("cache.flips=false", "finetune.flips needs mirrored latents in the cache"),
        ("sample.count=0", "sample.count: must be a whole number, at least 1; got 0"),
        ("cache.shard_size=0", "cache.shard_size: must be a whole number, at least 1; got 0"),
        ("evaluate.reconstructions=0", "evaluate.reconstructions: must be a whole number, at least 1; got 0"),
        ("tokenizer.pyramid={levels: 6}", "tokenizer.pyramid.levels .*: 32 px allow 5 at most; got 6"),
        ("tokenizer.spectrum={focus: -1}", "tokenizer.spectrum.focus: must be a finite number, at least 0; got -1"),
        ("data.test_count=0", "data.test_count: must be a whole number, at least 1; got 0"),
    ],
)
def test_a_wrong_value_names_its_key(override: str, expected: str) -> None:
    with pytest.raises(RecipeError, match=expected):
        parse(override)


@pytest.mark.parametrize(
    ("dropped", "needed", "by"),
    [("tokenizer", "tokenizer", "cache"), ("cache", "cache", "finetune"), ("finetune", "finetune", "sample")],
)
def test_a_missing_section_is_named_with_what_needs_it(dropped: str, needed: str, by: str) -> None:
    assert f"section {by} needs section {needed}" in refusal(f"{dropped}=null")


def test_a_run_may_end_early() -> None:
    recipe = parse("cache=null", "finetune=null", "sample=null")
    assert recipe.finetune is None
    assert recipe.evaluate is not None  # of the tokenizer alone
    assert not recipe.has("sample")


def test_the_image_size_must_fit_the_scale() -> None:
    for size in (33, 0):
        assert f"multiple of the scale 2; got {size}" in refusal(f"image_size={size}")
    assert "multiple of the scale 4; got 34" in refusal("image_size=34", "tokenizer.scale=4")
    assert parse("image_size=64", "tokenizer.scale=4").image_size == 64


def test_the_image_size_must_fit_the_pair_that_is_made() -> None:
    assert parse(PRETRAIN).pretrain.image_size == 16
    assert "pretrain.image_size x scale = 32; got 64" in refusal(PRETRAIN, "image_size=64")


def test_a_section_may_come_from_another_run() -> None:
    recipe = parse("tokenizer={from: runs/other}")
    assert recipe.tokenizer is None
    assert recipe.reuse == {"tokenizer": "runs/other"}
    assert recipe.has("tokenizer")
    assert "both 'from' and its own settings" in refusal("tokenizer.from=runs/other")
    assert "sample.from: unknown key" in refusal("sample={from: runs/other}")


def test_a_recipe_may_only_draw() -> None:
    recipe = parse_recipe({"name": "drawn", "pair": "somewhere", "sample": {"count": 4}})
    assert recipe.data is None
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe
    made = parse(PRETRAIN, *(f"{section}=null" for section in ("tokenizer", "cache", "finetune", "evaluate")))
    assert made.sample is not None
    for section in ("pretrain", "tokenizer"):
        needs = {"pretrain": {"image_size": 16}, "tokenizer": {"steps": 1, "batch_size": 1}}[section]
        with pytest.raises(RecipeError, match=f"section {section} needs section data"):
            parse_recipe({"name": "drawn", "image_size": 32, section: needs})


def test_a_pair_may_be_made_over_a_given_autoencoder() -> None:
    training = {"steps": 1, "batch_size": 1}
    pretrain = {"image_size": 16, "autoencoder": {"from": "vae"}, "transformer": {"size": "L", **training}}
    values = {"name": "made", "data": {"kind": "solids"}, "pretrain": pretrain}
    recipe = parse_recipe(values)
    assert values["pretrain"]["autoencoder"] == {"from": "vae"}  # what is given is left as it is
    assert recipe.reuse == {"pretrain.autoencoder": "vae"}
    assert recipe.pretrain.autoencoder is None
    assert yaml.safe_load(dump_recipe(recipe))["pretrain"]["autoencoder"] == {"from": "vae"}
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe

    def refused(**changes: Any) -> str:
        changed = {key: value for key, value in (pretrain | changes).items() if value is not None}
        with pytest.raises(RecipeError) as caught:
            parse_recipe({**values, "pretrain": changed})
        return str(caught.value)

    assert "both 'from' and its own settings" in refused(autoencoder={"from": "vae", "steps": 3})
    assert "must hold the settings of its training, or {from: FOLDER}" in refused(autoencoder=None)
    assert "no transformer to train" in refused(transformer=None)


def test_overrides_are_merged_before_validation() -> None:
    assert parse("data.count=9").data.count == 9
    recipe = parse("finetune.optim.lr=0.5", "finetune.optim.betas=[0.1, 0.2]", "finetune.ema_decay=0.9")
    assert recipe.finetune.optim == replace(parse().finetune.optim, lr=0.5, betas=(0.1, 0.2))
    assert recipe.finetune.ema_decay == 0.9
    assert parse("tokenizer.steps=5", "tokenizer.steps=6").tokenizer.steps == 6
    assert parse("finetune.lora.rank=4").finetune.lora.rank == 4  # of a section that was not there
    assert parse("sample.count=7", text=MINIMAL.replace("{count: 4}", "{count: wrong}")).sample.count == 7


def test_overrides_have_the_types_of_yaml() -> None:
    recipe = parse("finetune.flips=false", "finetune.ema_decay=null", "seed=3", "pair=some/folder", "data.count=2e4")
    assert recipe.finetune.flips is False
    assert recipe.finetune.ema_decay is None
    assert (recipe.seed, recipe.pair, recipe.data.count) == (3, "some/folder", 20_000)
    assert parse("pair=a=b").pair == "a=b"


def test_overrides_leave_what_they_are_given() -> None:
    values = yaml.safe_load(MINIMAL)
    merge_overrides(values, ["finetune.optim.lr=7", "name=other", "new.deep=1"])
    assert values == yaml.safe_load(MINIMAL)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("finetune", r"takes KEY=VALUE.*got 'finetune'"),
        ("=3", r"takes KEY=VALUE.*got '=3'"),
        ("name.x=3", r"--set name\.x: 'name' is not a section"),
        ("sample.count=[1", r"--set sample\.count: '\[1' is not valid YAML"),
    ],
)
def test_a_malformed_override_is_explained(override: str, expected: str) -> None:
    with pytest.raises(RecipeError, match=expected):
        parse(override)


@pytest.mark.parametrize("number", ["1e-3", "1.0e-3", "0.001", "1E-03", "+1e-3"])
def test_numbers_may_be_written_with_or_without_a_dot(tmp_path: Path, number: str) -> None:
    path = tmp_path / "recipe.yaml"
    pretrain = PRETRAIN.replace("=", ": ").replace(
        "model_config: {}", f"model_config: {{scaling_factor: {number}}}", 1
    )
    path.write_text(MINIMAL.replace("1.0e-3", number) + pretrain)
    recipe = load_recipe(path)
    assert recipe.finetune.optim.lr == 0.001
    assert recipe.pretrain.autoencoder.model_config == {
        "scaling_factor": 0.001
    }  # no type tells pydantic what this is
    assert load_recipe(path, [f"finetune.optim.lr={number}"]) == recipe


def test_words_stay_words(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL.replace("name: tiny", "name: 1e-3-baseline"))
    assert load_recipe(path).name == "1e-3-baseline"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "must hold a mapping of sections; got None"),
        ("- a\n- b\n", "must hold a mapping of sections; got \\['a', 'b'\\]"),
        ("name: [1", "is not valid YAML"),
        ("name: tiny\n", "nothing to run"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=expected) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no recipe .*nowhere\.yaml. Give a YAML file, the folder of a run, or"):
        load_recipe(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("name=../elsewhere", "name is the run's folder"),
        ("name=..", "name is the run's folder"),
        ("finetune.optim.lr=-1", "lr: must be a finite number, at least 0; got -1"),
        ("tokenizer.detail_dropout=1.0", r"detail_dropout: must be a number in \[0, 1\)"),
        ("evaluate={speed_batch: -3}", "speed_batch: must be a whole number, at least 0"),
        ("sample={guidance_channels: 0}", "guidance_channels: must be a whole number, at least 1"),
    ],
)
def test_values_out_of_range_are_refused(change: str, expected: str) -> None:
    with pytest.raises(RecipeError, match=expected):
        load_recipe(ROOT / "src" / "davae" / "recipes" / "demo.yaml", [change])
