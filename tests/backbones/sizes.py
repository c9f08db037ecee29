"""Public transformers at their own size, without memory, and the tables of docs/backbones.md.

`PYTHONPATH=tests python tests/backbones/sizes.py` writes the tables anew; test_full_size.py compares.
"""

from pathlib import Path

from torch import nn

from davae.backbones.public import PUBLIC
from davae.backbones.registry import BACKBONES, backbone_of
from davae.backbones.widening import widen_with_report

PAGE = Path(__file__).parents[2] / "docs" / "backbones.md"
SIDES = (512, 1024, 2048)
_DOCUMENTED = (
    "SD3.5-Medium",
    "FLUX.1-dev",
    "FLUX.2-dev",
    "PixArt-Sigma-XL/2",
    "Hunyuan-DiT v1.2",
    "SANA-1.6B",
    "DiT-XL/2",
)
MODELS = {name: PUBLIC[name] for name in _DOCUMENTED}


def count(module: nn.Module) -> int:
    """Parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def row(name: str) -> list[str]:
    """Cells of a model, widened by as many detail channels as it has base channels."""
    public = MODELS[name]
    model = public.build()
    backbone = backbone_of(model)
    base, f = backbone.latent_channels(model.config), public.compression
    widened, _ = widen_with_report(model, base)
    before, after = count(model), count(widened)

    def tokens(compression: int) -> str:
        return " / ".join(
            f"{backbone.num_tokens(model.config, side // compression, side // compression):,}" for side in SIDES
        )

    latent = f"f{f}c{base} -> f{2 * f}c{backbone.latent_channels(widened.config)}"
    share = f"{after - before:,} ({100 * (after - before) / before:.3f} %)"
    return [name, latent, f"{before:,}", share, tokens(f), tokens(2 * f)]


def markdown(head: list[str], aligned: str, rows: list[list[str]]) -> str:
    """A Markdown table; `aligned` is the rule under all columns but the first."""
    lines = [head, ["---", *[aligned] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def sizes() -> str:
    """Parameters and tokens of the public models."""
    head = ["model", "latent", "parameters", "added", f"tokens at {' / '.join(map(str, SIDES))} px", "upgraded"]
    return markdown(head, "---:", [row(name) for name in MODELS])


def families() -> str:
    """What the registry says of each class."""
    head = ["class", "predicted", "conditioned on: arguments of the pipeline", "layers that LoRA adapts by default"]
    rows = [
        [f"`{name}`", family.convention, family.conditioned_on, ", ".join(f"`{end}`" for end in family.lora_targets)]
        for name, family in BACKBONES.items()
    ]
    return markdown(head, "---", rows)


def with_tables(page: str) -> str:
    """The page with these tables between its marks."""
    for mark, text in (("families", families()), ("sizes", sizes())):
        start, rest = page.split(f"<!-- {mark} -->\n")
        page = f"{start}<!-- {mark} -->\n{text}\n<!-- /{mark} -->{rest.split(f'<!-- /{mark} -->')[1]}"
    return page


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
