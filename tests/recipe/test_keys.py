"""What can be set in a recipe, as it is described to people: complete, true, and found by a misspelt name."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import yaml

from davae.core.config import Config
from davae.recipe import BaseTransformerConfig, parse_recipe
from davae.recipe.keys import Key, describe_keys, markdown_page, sentence_of, to_markdown
from whole_recipe import SMALLEST

KEYS = {key.name: key for key in describe_keys()}
GIVEN = ("name", "data.kind", "image_size")


def entries(values: dict[str, Any], section: str = "") -> dict[str, Any]:
    """Every key of a resolved recipe by its name."""
    found = {}
    for key, value in values.items():
        is_list = isinstance(value, tuple) and any(isinstance(item, dict) for item in value)
        name = f"{section}{key}[]" if is_list else f"{section}{key}"
        found[name] = value
        if is_list or (isinstance(value, dict) and key != "model_config"):
            found |= entries(value[0] if is_list else value, f"{name}.")
    return found


ENTRIES = entries(parse_recipe(SMALLEST).as_dict())


def test_every_key_has_a_sentence() -> None:
    silent = [name for name, key in KEYS.items() if not key.sentence]
    assert not silent, f"write what these are, as a string under their fields: {', '.join(silent)}"
    assert not [name for name, key in KEYS.items() if not key.sentence.endswith(".")]


def test_every_key_of_a_recipe_is_described() -> None:
    without_effect = {f"pretrain.transformer.{name}" for name in BaseTransformerConfig.WITHOUT_EFFECT}
    assert ENTRIES.keys() - KEYS.keys() == without_effect | {"pretrain.cache.max_aspect"}
    assert not KEYS.keys() - ENTRIES.keys()


def test_a_required_key_is_one_that_a_recipe_must_say() -> None:
    required = {name for name, key in KEYS.items() if key.default is None and key.follows is None}
    given = entries(SMALLEST)
    assert required <= given.keys()
    assert {name for name, key in KEYS.items() if key.default == "" and key.follows is None} <= given.keys()


def test_a_default_is_what_a_recipe_without_the_key_has() -> None:
    plain = [key for key in KEYS.values() if not key.is_section and key.follows is None and key.default is not None]
    for key in plain:
        if key.name in GIVEN or key.name.startswith("realism.data.kind"):
            continue
        value = ENTRIES[key.name]
        expected = yaml.safe_load(key.default or "")
        if isinstance(value, float):
            expected = float(expected)  # 1e-06 is text in YAML 1.1, and a number in recipes
        assert (list(value) if isinstance(value, tuple) else value) == expected, key.name


def test_a_section_that_is_given_in_part_keeps_the_rest_of_its_default() -> None:
    assert KEYS["tokenizer.adversarial.optim"].default == "{betas: [0.5, 0.9]}"
    assert KEYS["tokenizer.adversarial.optim.betas"].default == "[0.5, 0.9]"
    without, given = ({"adversarial": adversarial} for adversarial in ({}, {"optim": {"lr": 1e-4}}))
    for section in (without, given):
        recipe = parse_recipe({**SMALLEST, "tokenizer": SMALLEST["tokenizer"] | section})
        assert recipe.tokenizer is not None and recipe.tokenizer.adversarial is not None
        assert recipe.tokenizer.adversarial.optim.betas == (0.5, 0.9)


def test_the_second_fine_tuning_follows_the_first_one() -> None:
    followers = [key for key in KEYS.values() if key.follows is not None]
    assert {key.follows for key in followers} < set(KEYS)
    first = SMALLEST["finetune"] | {"time_mean": 0.5, "optim": {"lr": 3e-4}}
    recipe = parse_recipe({**SMALLEST, "finetune": first})
    assert recipe.finetune is not None and recipe.realism is not None
    for key in followers:
        name = key.name.removeprefix("realism.")
        assert getattr(recipe.realism, name) == getattr(recipe.finetune, name), name
    assert KEYS["realism.detail_warmup_steps"].facts == "integer: at least 0; default: 0"
    assert KEYS["realism.time_mean"].facts == "number; default: that of finetune.time_mean"


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("name", "text; required"),
        ("data", "section; absent by default"),
        ("data.kind", "one of: auto, solids, folder, shards; default: auto"),
        ("data.path", "path or null; default: null"),
        ("pretrain.save_dtype", "one of: float32, float16, bfloat16, float8; default: float32"),
        ("pretrain.transformer.size", "one of: B, L, XL, 1p0B, 1p6B, null; default: null"),
        ("pretrain.autoencoder.model_config", "mapping; required"),
        ("pretrain.autoencoder.vision.phases[]", "list of sections; default: [{}]"),
        ("tokenizer", "section or {from: FOLDER}; absent by default"),
        ("tokenizer.optim", "section; default: {}"),
        ("finetune.lora.targets", "list of texts or null; default: null"),
        ("sample.guidance_interval", "list of 2 numbers: in [0, 1]; default: [0.0, 1.0]"),
        ("evaluate.claims", "true or false; default: false"),
    ],
)
def test_types_and_defaults_are_said_for_people(name: str, facts: str) -> None:
    assert KEYS[name].facts == facts


@dataclass(frozen=True, kw_only=True)
class _Base(Config):
    """A section."""

    first: int = 0
    """Said by
    the base."""
    silent: int = 0
    redefined: Literal["a", "b"] = "a"
    """Said by the base."""


@dataclass(frozen=True, kw_only=True)
class _Derived(_Base):
    """A section with more."""

    redefined: Literal["a", "b"] = "b"
    added: list[int] = field(default_factory=list)
    """Said by the class."""


def test_a_sentence_is_that_of_the_class_or_of_the_base_that_says_one() -> None:
    expected = {
        "first": "Said by the base.",
        "silent": "",
        "redefined": "Said by the base.",
        "added": "Said by the class.",
    }
    assert {name: sentence_of(_Derived, name) for name in expected} == expected


def test_a_prefix_takes_a_key_or_a_section() -> None:
    assert [key.name for key in describe_keys("seed")] == ["seed"]
    assert [key.name for key in describe_keys("finetune.lora")] == [
        "finetune.lora",
        *(f"finetune.lora.{name}" for name in ("rank", "alpha", "targets", "frozen_precision")),
    ]
    nested = describe_keys("pretrain.autoencoder.vision.phases")
    assert [key.name for key in nested][:2] == [
        "pretrain.autoencoder.vision.phases[]",
        "pretrain.autoencoder.vision.phases[].from_step",
    ]
    assert describe_keys("") == list(KEYS.values())


@pytest.mark.parametrize(
    ("prefix", "suggested"),
    [
        ("finetun.steps", "finetune.steps"),
        ("finetune.stepz", "finetune.steps"),
        ("lr", "finetune.optim.lr"),
        ("betaz", "tokenizer.optim.betas"),
        ("tokeniser", "tokenizer"),
        ("zzzz", "'davae keys' lists all of them"),
    ],
)
def test_an_unknown_prefix_is_answered_with_the_nearest(prefix: str, suggested: str) -> None:
    with pytest.raises(ValueError, match=f"no key '{prefix}'") as refused:
        describe_keys(prefix)
    assert suggested in str(refused.value)


def test_markdown_is_a_heading_and_a_table_a_section() -> None:
    keys = [
        Key("seed", "integer", "0", "", "Of the draws."),
        Key("a", "section", "", "", "A section.", is_section=True),
        Key("a.b", "one of", "x", "x, y", "The norm |b|."),
        Key("a.c", "section", "{}", "", "A section in it.", is_section=True, follows="d.c"),
        Key("a.c.e", "integer", None, "", "Left out with its section."),
    ]
    assert to_markdown(keys).splitlines() == [
        "| key | type | default | what it is |",
        "|---|---|---|---|",
        "| `seed` | integer | `0` | Of the draws. |",
        "",
        "## a",
        "",
        "A section. *Section; absent by default.*",
        "",
        "| key | type | default | what it is |",
        "|---|---|---|---|",
        "| `a.b` | one of: x, y | `x` | The norm \\|b\\|. |",
    ]


def test_the_page_has_every_key_but_those_that_follow_others() -> None:
    page = markdown_page()
    expected = {name for name in KEYS if not name.startswith("realism.")}
    expected |= {name for name in KEYS if name.startswith("realism.data")}
    expected |= {"realism.start", "realism.detail_warmup_steps"}
    assert {name for name in KEYS if f"| `{name}` |" in page or f"# {name}\n" in page} == expected
