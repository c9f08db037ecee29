"""docs/recipe.md is what the code says, to the letter."""

from pathlib import Path

from davae.recipe.keys import markdown_page

PAGE = Path(__file__).parents[2] / "docs" / "recipe.md"
RENEW = "renew docs/recipe.md: davae keys --markdown > docs/recipe.md"


def test_the_page_is_generated() -> None:
    written, generated = PAGE.read_text(encoding="utf-8").splitlines(), markdown_page().splitlines()
    different = [f"- {line}" for line in written if line not in generated]
    different += [f"+ {line}" for line in generated if line not in written]
    assert not different, "\n".join([RENEW, *different[:20]])
    assert written == generated, RENEW
