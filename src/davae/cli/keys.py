"""`davae keys`."""

import argparse
import sys
import textwrap

from davae.cli.grammar import Verb

_WIDTH = 80
_INDENT = " " * 4


def _add_keys(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "prefix", nargs="?", default="", metavar="PREFIX", help="a key or a section, for example finetune.optim"
    )
    parser.add_argument("--markdown", action="store_true", help="as Markdown; of all keys, docs/recipe.md")


def _run(options: argparse.Namespace) -> int:
    from davae.recipe.keys import describe_keys, markdown_page, to_markdown

    keys = describe_keys(options.prefix)
    if options.markdown:
        sys.stdout.write(to_markdown(keys) if options.prefix else markdown_page())
        return 0
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True)
    for key in keys:
        if key.is_section and key is not keys[0]:
            console.print()
        facts = Text("\n".join(textwrap.wrap(f"{key.name}  {key.facts}", _WIDTH, subsequent_indent=_INDENT)))
        facts.stylize("bold", 0, len(key.name))
        console.print(facts)
        sentence = textwrap.fill(key.sentence, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)
        console.print(Text(sentence, style="dim"))
    return 0


VERB = Verb(
    "what a recipe can say: every key with its type, default and meaning",
    _add_keys,
    _run,
    {"keys finetune.optim": "one section", "keys tokenizer.steps": "one key", "keys": "all of them"},
)
