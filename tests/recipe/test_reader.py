"""YAML as recipes have it: texts stay as they are written, and what could cost anything is refused with its line."""

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from davae.recipe import Recipe, RecipeError, dump_recipe, load_recipe
from davae.recipe.reader import read_yaml

TEXT = """\
name: tiny
data: {{path: {path}}}
image_size: 32
tokenizer: {{steps: 2, batch_size: 4}}
cache: {{}}
finetune: {{steps: 2, batch_size: 4, preview: {{}}}}
"""
BOMB = "[&a [x,x,x,x,x,x,x,x,x]" + "".join(
    f", &{after} [{','.join([f'*{name}'] * 9)}]" for name, after in zip("abcdefgh", "bcdefghi", strict=True)
)
PATHS = [
    *("/data/cats #2", "/data/[raw] cats", "/data/cats: best", "/data/{final}", "2024-01-01", "2024", "1e5", "no"),
    *("007", "C:\\data\\new", "@data", "/data/100%", "- x", "*best", "!x", "&x y", "[a", "{a: b}", "a=b", "=", "on"),
    *("`x`", "|", ">", "?", "a  b", "NULL", "%x", "--set", ".nan", "1_000", "12:30:45", "0x10"),
]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(TEXT.format(path="photos"))
    return path


def path_of(recipe: Recipe) -> str | None:
    assert recipe.data is not None
    return recipe.data.path


@pytest.mark.parametrize("path", PATHS)
def test_a_text_of_the_command_line_stays_as_it_is(recipe: Path, path: str) -> None:
    loaded = load_recipe(recipe, [f"data.path={path}"])
    assert path_of(loaded) == path
    recipe.write_text(dump_recipe(loaded))
    assert path_of(load_recipe(recipe)) == path


@pytest.mark.parametrize(
    ("given_", "expected"),
    [("'/data/cats #2'", "/data/cats #2"), ('"a\\tb"', "a\tb"), ("'a' b", "'a' b"), ("'", "'"), ("''a", "''a")],
)
def test_quotes_around_a_text_are_taken_off(recipe: Path, given_: str, expected: str) -> None:
    assert path_of(load_recipe(recipe, [f"data.path={given_}"])) == expected


def test_null_is_none_where_that_is_allowed(recipe: Path) -> None:
    with pytest.raises(RecipeError, match="data needs a path"):
        load_recipe(recipe, ["data.path=null"])
    assert load_recipe(recipe, ["name=null"]).name == "null"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red fox", ("a red fox",)),
        ("a fox #1, a cat: sleeping", ("a fox #1, a cat: sleeping",)),
        ("[no, 007]", ("no", "007")),
        ("['a #1', \"b: c\"]", ("a #1", "b: c")),
        ("[raw] fox", ("[raw] fox",)),
    ],
)
def test_a_list_of_texts_may_be_one_text(recipe: Path, text: str, expected: tuple[str, ...]) -> None:
    loaded = load_recipe(recipe, [f"finetune.preview.prompts={text}"])
    assert loaded.finetune is not None and loaded.finetune.preview is not None
    assert loaded.finetune.preview.prompts == expected


def test_a_list_of_texts_that_needs_quotes_says_so(recipe: Path) -> None:
    with pytest.raises(RecipeError, match="Put texts with ',', ':' or '#' in quotes"):
        load_recipe(recipe, ["finetune.preview.prompts=[a red fox #1 in snow, a cat: sleeping]"])


@pytest.mark.parametrize("path", ["2024-01-01", "no", "007", "1e5", "12:30:45", "C:\\data"])
def test_a_text_of_a_file_stays_as_it_is(recipe: Path, path: str) -> None:
    recipe.write_text(TEXT.format(path=path))
    assert path_of(load_recipe(recipe)) == path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("1e-3", 0.001), ("010", 10), ("1_000", 1000), (".5", 0.5), ("-2", -2), ("+1.5E3", 1500.0), ("2.", 2.0)),
        *(("true", True), ("No", False), ("null", None), ("~", None), ("2024-01-01", "2024-01-01"), ("'3'", "3")),
        *(("12:30:45", "12:30:45"), ("0x10", "0x10"), ("{a: [1, b]}", {"a": [1, "b"]}), ("9" * 500, "9" * 500)),
    ],
)
def test_anything_else_is_yaml(text: str, value: Any) -> None:
    assert read_yaml(text, Any, "here") == value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"name: x\ntokenizer: {{from: {BOMB}]}}\n", "line 2: with its aliases this is more than 20,000 values"),
        (f"name: x\nseed: {'[' * 5000}{']' * 5000}\n", "line 2: more than 32 sections or lists lie in each other"),
        ("name: x\ndata: &a\n  path: [*a]\n", "line 2: this contains itself"),
        ("name: x\nseed: !!bool abc\n", "line 2: a recipe has no tags; got 'tag:yaml.org,2002:bool'"),
        ("name: x\nseed: !!python/object/apply:os.system [ls]\n", "line 2: a recipe has no tags"),
        ("name: x\nseed: !mine 3\n", "line 2: a recipe has no tags; got '!mine'"),
        ("name: x\nseed: 1\nname: y\n", "line 3: the key 'name' stands twice, before in line 1; keep one"),
        ("name: x\n? [a, b]\n: 3\n", "line 2: a key must be a word"),
        ("name: x\n---\nname: y\n", "line 2: but found another document. Keep one recipe in a file"),
        (
            "name: x\ndata:\n\tpath: y\n",
            "line 3: found character '\\t' that cannot start any token. Indent with spaces",
        ),
        ("name: x\npair: *nowhere\n", "line 2: found undefined alias"),
        (
            "name: x\npair: a: b\n",
            "line 2: mapping values are not allowed here. Put a text with such signs in quotes",
        ),
        ("name: x\nseed: \x00\n", "special characters are not allowed"),
        ("name: x\n<<: 3\n", "line 2: << takes over a section"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)
def test_what_no_recipe_needs_is_refused_at_once_with_its_line(recipe: Path, text: str, expected: str) -> None:
    recipe.write_text(text)
    started = time.process_time()
    with pytest.raises(RecipeError) as refused:
        load_recipe(recipe)
    assert time.process_time() - started < 1
    assert str(refused.value).startswith(str(recipe))
    assert expected in str(refused.value)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("name: x\n".encode("utf-16"), "line 1: not UTF-8. Save the file as UTF-8"),
        (b"name: x\npair: \xff\n", "line 2: not UTF-8"),
        (b"# " + b"x" * 1_000_001, "it has more than 1,000,000 bytes"),
    ],
    ids=["utf-16", "latin-1", "large"],
)
def test_a_file_that_is_no_text_is_refused(recipe: Path, data: bytes, expected: str) -> None:
    recipe.write_bytes(data)
    with pytest.raises(RecipeError, match=expected):
        load_recipe(recipe)


def test_a_byte_order_mark_is_passed_over(recipe: Path) -> None:
    recipe.write_bytes(b"\xef\xbb\xbf" + recipe.read_bytes())
    assert load_recipe(recipe).name == "tiny"


def test_aliases_and_merges_serve_a_few_settings(recipe: Path) -> None:
    text = TEXT.format(path="photos").replace(
        "steps: 2, batch_size: 4}", "steps: 2, batch_size: 4, optim: &o {lr: 0.5}}", 1
    )
    text = text.replace("preview: {}", "optim: {<<: *o, warmup_steps: 3}")
    recipe.write_text(text)
    loaded = load_recipe(recipe)
    assert loaded.finetune is not None
    assert (loaded.finetune.optim.lr, loaded.finetune.optim.warmup_steps) == (0.5, 3)


@pytest.mark.parametrize("value", ["null", "3", "[a]", "{a: b}", "''"])
def test_another_run_is_named_by_a_text(recipe: Path, value: str) -> None:
    with pytest.raises(RecipeError, match=r"tokenizer\.from|must name a file or folder"):
        load_recipe(recipe, [f"tokenizer={{from: {value}}}"] if value != "3" else ["tokenizer={from: }"])


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet=st.sampled_from(list("ab:-[]{}&*!|>'\"#%@,?.0 1\n\t~<=e\\")), max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    for hint in (Recipe, Any):
        try:
            read_yaml(text, hint, "here")
        except RecipeError as error:
            assert str(error).startswith("here")
