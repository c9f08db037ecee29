"""What a pretrained transformer sees in a noisy latent: its tokens behind one of its blocks."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from davae.backbones.base import Backbone
from davae.backbones.registry import BACKBONES, backbone_of


def require_features(family: Backbone, config: Mapping[str, Any], block: int) -> None:
    """Refuse a transformer that has no such block to look behind.

    Raises:
        ValueError: the blocks of the family are not known, or there are fewer.
    """
    if family.blocks is None:
        known = sorted(name for name, other in BACKBONES.items() if other.blocks is not None)
        raise ValueError(
            f"The tokens inside a {family.class_name} cannot be compared; allowed are {', '.join(known)}. Leave "
            f"generative_alignment out, or take a pair with one of these."
        )
    if block > config["num_layers"]:
        raise ValueError(
            f"generative_alignment.block must be one of the {config['num_layers']} blocks of this "
            f"{family.class_name}, counted from 1; got {block}. A quarter of them is usual."
        )


class BlockFeatures:
    """A transformer up to a block, frozen: noisy latents in, tokens out.

    Args:
        transformer: pretrained; is changed: it has no gradients, and no blocks behind this one, any more.
        block: counted from 1.

    Raises:
        ValueError: see `require_features`.
    """

    def __init__(self, transformer: Any, block: int) -> None:
        family = backbone_of(transformer)
        require_features(family, transformer.config, block)
        assert family.blocks is not None
        assert family.denoise_anything is not None
        blocks = getattr(transformer, family.blocks)[:block]
        setattr(transformer, family.blocks, blocks)
        self.transformer = transformer.requires_grad_(False).eval()
        self._last, self._denoise = blocks[-1], family.denoise_anything

    def __call__(self, noisy: Tensor, time: Tensor) -> Tensor:
        """Tokens [B, N, D] of the transformer's latents [B, C, h, w] at native times [B], drawn from no class."""
        tokens: list[Tensor] = []
        hook = self._last.register_forward_hook(lambda _module, _given, output: tokens.append(output))
        try:
            self._denoise(self.transformer, noisy, time)
        finally:
            hook.remove()
        return tokens[0]
