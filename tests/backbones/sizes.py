"""Public transformers at their own size, without memory, and the tables of docs/backbones.md.

`PYTHONPATH=tests python tests/backbones/sizes.py` writes the tables anew; test_full_size.py compares.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

import davae
from davae.backbones.registry import BACKBONES, backbone_of

PAGE = Path(__file__).parents[2] / "docs" / "backbones.md"
SIDES = (512, 1024, 2048)
_XL = {"num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": 8, "num_layers": 28}


@dataclass(frozen=True)
class Public:
    """A published transformer: its class, its config, the compression of its autoencoder."""

    transformer: Callable[..., Any]
    config: dict[str, Any]
    compression: int = 8

    def build(self) -> Any:
        """On the meta device."""
        with torch.device("meta"):
            return self.transformer(**self.config)


MODELS = {
    "SD3.5-Medium": Public(
        diffusers.SD3Transformer2DModel,
        {
            "sample_size": 128,
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 24,
            "attention_head_dim": 64,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 384,
            "dual_attention_layers": tuple(range(13)),
            "qk_norm": "rms_norm",
        },
    ),
    "FLUX.1-dev": Public(diffusers.FluxTransformer2DModel, {"guidance_embeds": True}),
    "FLUX.2-dev": Public(diffusers.Flux2Transformer2DModel, {}),
    "PixArt-Sigma-XL/2": Public(
        diffusers.PixArtTransformer2DModel,
        _XL
        | {
            "cross_attention_dim": 1152,
            "sample_size": 128,
            "interpolation_scale": 2,
            "caption_channels": 4096,
            "use_additional_conditions": False,
        },
    ),
    "Hunyuan-DiT v1.2": Public(
        diffusers.HunyuanDiT2DModel,
        {
            "in_channels": 4,
            "patch_size": 2,
            "sample_size": 128,
            "hidden_size": 1408,
            "num_layers": 40,
            "mlp_ratio": 4.3637,
            "use_style_cond_and_image_meta_size": False,
        },
    ),
    "SANA-1.6B": Public(diffusers.SanaTransformer2DModel, {}, compression=32),
    "DiT-XL/2": Public(diffusers.DiTTransformer2DModel, _XL),
}


def count(module: nn.Module) -> int:
    """Parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def row(name: str) -> list[str]:
    """Cells of a model, widened by as many detail channels as it has base channels."""
    public = MODELS[name]
    model = public.build()
    backbone = backbone_of(model)
    base, f = backbone.latent_channels(model.config), public.compression
    widened = davae.widen(model, detail_channels=base)
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
        [f"`{name}`", family.convention, family.conditioning, ", ".join(f"`{end}`" for end in family.lora_targets)]
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
