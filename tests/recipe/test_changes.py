"""Changes to a recipe: files laid over it, keys of one name at once, and the form for a trial."""

from pathlib import Path
from typing import Any

import pytest

from davae.recipe import Recipe, RecipeError, load_recipe, merge_overrides, parse_recipe, shipped_recipes
from davae.recipe.changes import keys_in_use, merged
from davae.recipe.keys import describe_keys
from whole_recipe import SMALLEST


def changed(*overrides: str) -> dict[str, Any]:
    """Keys that overrides change, with their values."""
    before, after = SMALLEST, merge_overrides(SMALLEST, overrides)
    found: dict[str, Any] = {}

    def compare(old: Any, new: Any, name: str) -> None:
        if isinstance(new, dict):
            for key, value in new.items():
                compare(old.get(key) if isinstance(old, dict) else None, value, f"{name}.{key}" if name else key)
        elif old != new:
            found[name] = new

    compare(before, after, "")
    return found


def test_keys_in_use_are_those_that_can_be_described() -> None:
    described = {key.name for key in describe_keys() if not key.is_section and "[]" not in key.name}
    taken_over = {name for name in described if name.startswith(("realism.lora.", "realism.preview."))}
    assert set(keys_in_use(Recipe, SMALLEST)) == described - taken_over


def test_two_stars_take_a_name_in_every_section() -> None:
    assert changed("**.guidance_scale=3") == {"finetune.preview.guidance_scale": 3, "sample.guidance_scale": 3}
    assert {"seed", "data.seed", "sample.seed", "finetune.preview.seed"} <= set(changed("**.seed=5"))
    assert {"pretrain.autoencoder.optim.lr", "tokenizer.adversarial.optim.lr"} <= set(changed("**.lr=5"))
    assert set(changed("pretrain.**.lr=5")) == {
        "pretrain.autoencoder.optim.lr",
        "pretrain.autoencoder.adversarial.optim.lr",
        "pretrain.transformer.optim.lr",
    }


def test_one_star_stays_in_a_section() -> None:
    assert set(changed("*.precision=fp32")) == {
        f"{section}.precision" for section in ("tokenizer", "cache", "finetune", "realism", "sample", "judge")
    }
    assert set(changed("sample.*_size=3")) == {"sample.batch_size"}


def test_a_pattern_that_finds_nothing_is_an_error() -> None:
    with pytest.raises(RecipeError, match=r"--set \*\*\.stepz: no key of this recipe has such a name"):
        merge_overrides(SMALLEST, ["**.stepz=3"])
    with pytest.raises(RecipeError, match=r"tokenizer\.\*\*\.rank"):
        merge_overrides({**SMALLEST, "tokenizer": {"from": "runs/one"}}, ["tokenizer.**.rank=3"])


def test_sections_are_merged_key_by_key() -> None:
    below = {"a": {"b": 1, "c": {"d": 2}}, "e": [1, 2]}
    assert merged(below, {"a": {"c": {"f": 3}}, "e": [4]}) == {"a": {"b": 1, "c": {"d": 2, "f": 3}}, "e": [4]}
    assert below == {"a": {"b": 1, "c": {"d": 2}}, "e": [1, 2]}
    assert merged({"cache": {"flips": True}}, {"cache": {"from": "x"}}) == {"cache": {"from": "x"}}
    assert merged({"cache": {"from": "x"}}, {"cache": {"flips": True}}) == {"cache": {"flips": True}}
    assert merged({"sample": {"count": 1}}, {"sample": None}) == {"sample": None}


def test_overlays_lie_over_the_recipe_and_under_the_command_line(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("finetune: {steps: 7, optim: {lr: 0.5}}\nsample: {count: 3}\n")
    second.write_text("finetune: {steps: 8}\n")
    recipe = load_recipe("demo", ["sample.count=5"], overlays=[first, second])
    plain = load_recipe("demo")
    assert recipe.finetune is not None and plain.finetune is not None and recipe.sample is not None
    assert (recipe.finetune.steps, recipe.finetune.optim.lr, recipe.sample.count) == (8, 0.5, 5)
    assert recipe.finetune.optim.betas == plain.finetune.optim.betas
    with pytest.raises(RecipeError, match="no file .*third.yaml to lay over"):
        load_recipe("demo", overlays=[tmp_path / "third.yaml"])


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_a_trial_of_any_recipe_has_its_stages_and_models_at_a_trials_size(name: str) -> None:
    whole, trial = load_recipe(name), load_recipe(name, quick=True)
    assert trial.name == (name if name.endswith("-quick") else f"{name}-quick")
    for section in ("pretrain", "tokenizer", "cache", "prompts", "finetune", "sample", "evaluate"):
        assert whole.has(section) == trial.has(section)
    for training in (trial.tokenizer, trial.finetune, trial.pretrain and trial.pretrain.autoencoder):
        if training is not None:
            assert training.steps <= 16 and training.batch_size <= 4
    assert trial.image_size == whole.image_size
    if whole.tokenizer is not None and trial.tokenizer is not None:
        assert trial.tokenizer.detail_channels == whole.tokenizer.detail_channels
        assert trial.tokenizer.perceptual is None
    if whole.sample is not None and trial.sample is not None:
        assert trial.sample.count <= 8 and trial.sample.guidance_scale == whole.sample.guidance_scale


def test_a_trial_heeds_what_is_asked_for() -> None:
    trial = load_recipe("demo", ["finetune.steps=100", "name=mine", "image_size=64"], quick=True)
    assert trial.finetune is not None and trial.tokenizer is not None
    assert (trial.name, trial.finetune.steps, trial.tokenizer.steps, trial.image_size) == ("mine", 100, 16, 64)


def test_the_second_round_follows_the_first_one_key_by_key() -> None:
    values = merge_overrides(SMALLEST, ["finetune.optim={lr: 0.5, warmup_steps: 3}", "realism.optim.lr=0.25"])
    realism = parse_recipe(values).realism
    assert realism is not None
    assert (realism.optim.lr, realism.optim.warmup_steps) == (0.25, 3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("pretrain.transformer.lora={rank: 4}", "pretrain.transformer: lora has no effect here"),
        ("pretrain.transformer.init=repeat", "pretrain.transformer: init has no effect"),
        ("pretrain.transformer.detail_warmup_steps=5", "pretrain.transformer: detail_warmup_steps has no effect"),
        ("pretrain.cache.max_aspect=2", "pretrain.cache: max_aspect has no effect here; got 2.0. Leave it out"),
    ],
)
def test_a_setting_without_effect_is_refused(change: str, reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        parse_recipe(merge_overrides(SMALLEST, [change]))
