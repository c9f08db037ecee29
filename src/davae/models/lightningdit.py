"""LightningDiT (Yao et al. 2025), the class-conditional transformer of the ImageNet branch, for diffusers.

Parameter names are those of the public checkpoints. Shapes: B batch, C latent channels,
H = W = `sample_size`, N tokens, D `hidden_size`.
"""

from collections.abc import Collection
from os import PathLike
from typing import Any, Final

import torch
import torch.nn.functional as F
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from davae.models.diffusers_model import DiffusersModel, register_to_config
from davae.models.embeddings import rotary_tables, rotate, sincos_position_table, timestep_embedding


class RMSNorm(nn.Module):
    """x / rms(x) in float32, cast back, times a learned weight; over the last axis. Optionally scaled and shifted."""

    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, hidden_states: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """[..., size] -> [..., size].

        Args:
            hidden_states: [B, N, size], or any [..., size] without `scale`.
            scale: [B, 1, size]; the result is times 1 + scale.
            shift: [B, 1, size], added last; only with `scale`.
        """
        normed = F.rms_norm(hidden_states.float(), self.weight.shape, eps=self.eps).to(hidden_states.dtype)
        if scale is None:
            return normed * self.weight
        # Weight and scale meet on [B, 1, size]: one pass over the tokens, and one tensor less to keep for backward.
        factor = self.weight * (1 + scale)
        return normed * factor if shift is None else torch.addcmul(shift, normed, factor)


class PatchEmbedder(nn.Module):
    """Latent [B, C, H, W] -> tokens [B, N, D], row-major."""

    def __init__(self, in_channels: int, hidden_size: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, hidden_size, kernel_size=patch_size, stride=patch_size)

    def forward(self, latent: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, N, D]."""
        return self.proj(latent).flatten(2).transpose(1, 2)


class TimestepEmbedder(nn.Module):
    """Native time [B] in [0, 1] -> conditioning [B, D]."""

    def __init__(self, hidden_size: int, frequency_dim: int = 256) -> None:
        super().__init__()
        self.frequency_dim = frequency_dim
        self.mlp = nn.Sequential(
            nn.Linear(frequency_dim, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, timestep: Tensor, dtype: torch.dtype) -> Tensor:
        """[B] -> [B, D]; the table is computed in float32 and cast to `dtype`."""
        return self.mlp(timestep_embedding(timestep, self.frequency_dim).to(dtype))


class LabelEmbedder(nn.Module):
    """Labels [B] -> conditioning [B, D]; one more row than there are classes, for "no class"."""

    def __init__(self, num_classes: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, hidden_size)

    def forward(self, class_labels: Tensor) -> Tensor:
        """[B] int64 -> [B, D]."""
        return self.embedding_table(class_labels)


class RotaryEmbedding(nn.Module):
    """Holds the rotary tables [N, head_dim] under the names that public checkpoints give them."""

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, head_dim: int, grid: int) -> None:
        super().__init__()
        cos, sin = rotary_tables(head_dim, grid)
        self.register_buffer("freqs_cos", cos)
        self.register_buffer("freqs_sin", sin)

    def forward(self, q: Tensor) -> Tensor:
        """Turn queries or keys [B, heads, N, head_dim]."""
        return rotate(q, self.freqs_cos, self.freqs_sin)


class Attention(nn.Module):
    """Self-attention with rotary positions; optional RMSNorm of queries and keys before the rotation."""

    def __init__(self, hidden_size: int, num_heads: int, qk_norm: bool) -> None:
        super().__init__()
        head_dim = hidden_size // num_heads
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.q_norm = RMSNorm(head_dim) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(head_dim) if qk_norm else nn.Identity()
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden_states: Tensor, rope: RotaryEmbedding) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        qkv = self.qkv(hidden_states).unflatten(2, (3, self.num_heads, -1))  # [B, N, 3, heads, head_dim]
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, heads, N, head_dim] each, views
        attended = F.scaled_dot_product_attention(rope(self.q_norm(q)), rope(self.k_norm(k)), v)
        return self.proj(attended.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """w3(silu(a) * b) with [a, b] = w12(x); the hidden width is 2/3 of `mlp_ratio * D`, rounded down."""

    def __init__(self, hidden_size: int, mlp_ratio: float) -> None:
        super().__init__()
        width = int(hidden_size * mlp_ratio) * 2 // 3
        self.w12 = nn.Linear(hidden_size, 2 * width)
        self.w3 = nn.Linear(width, hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        gate, value = self.w12(hidden_states).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class LightningDiTBlock(nn.Module):
    """Attention and SwiGLU, each scaled, shifted and gated by the conditioning (adaLN-Zero)."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float, qk_norm: bool, adaln_shift: bool) -> None:
        super().__init__()
        self.adaln_shift = adaln_shift
        self.norm1 = RMSNorm(hidden_size)
        self.attn = Attention(hidden_size, num_heads, qk_norm)
        self.norm2 = RMSNorm(hidden_size)
        self.mlp = SwiGLU(hidden_size, mlp_ratio)
        num_chunks = 6 if adaln_shift else 4
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, num_chunks * hidden_size))

    def forward(self, hidden_states: Tensor, conditioning: Tensor, rope: RotaryEmbedding) -> Tensor:
        """[B, N, D], [B, D] -> [B, N, D]."""
        modulation = self.adaLN_modulation(conditioning)[:, None]  # [B, 1, chunks * D]
        if self.adaln_shift:
            shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
            hidden_states = hidden_states + gate1 * self.attn(self.norm1(hidden_states, scale1, shift1), rope)
            return hidden_states + gate2 * self.mlp(self.norm2(hidden_states, scale2, shift2))
        scale1, gate1, scale2, gate2 = modulation.chunk(4, dim=-1)
        hidden_states = hidden_states + gate1 * self.attn(self.norm1(hidden_states, scale1), rope)
        return hidden_states + gate2 * self.mlp(self.norm2(hidden_states, scale2))


class FinalLayer(nn.Module):
    """Tokens -> velocity of a patch: features (row in patch, column in patch, channel), channel innermost."""

    def __init__(self, hidden_size: int, out_features: int) -> None:
        super().__init__()
        self.norm_final = RMSNorm(hidden_size)
        self.linear = nn.Linear(hidden_size, out_features)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, hidden_states: Tensor, conditioning: Tensor) -> Tensor:
        """[B, N, D], [B, D] -> [B, N, p * p * C]."""
        shift, scale = self.adaLN_modulation(conditioning)[:, None].chunk(2, dim=-1)
        return self.linear(self.norm_final(hidden_states, scale, shift))


class LightningDiT(DiffusersModel):
    """Velocity of rectified flow for a latent of fixed size, given a time and a class.

    Time is native: 0 is noise, 1 is data, and the velocity is data - noise. `davae.core.flow` owns the flip
    to diffusers' sigmas. There is no dropout inside: to drop a label, set it to `null_class`.

    Args:
        sample_size: side of the latent grid.
        patch_size: side of the square of latent positions that makes a token.
        in_channels: latent channels C, in and out.
        hidden_size: token width D.
        num_layers: transformer blocks.
        num_attention_heads: heads; `hidden_size / num_attention_heads` must be a multiple of 4.
        mlp_ratio: width of the MLP in units of D before the 2/3 of SwiGLU.
        num_classes: classes; label `num_classes` means "no class".
        qk_norm: normalise queries and keys. Must match the checkpoint: it changes the function.
        adaln_shift: False leaves the shifts of the blocks out (the reference's wo_shift).
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["LightningDiTBlock"]
    _repeated_blocks = ["LightningDiTBlock"]
    _skip_layerwise_casting_patterns = ["x_embedder", "norm", "adaLN_modulation"]
    # Rounded to bfloat16 the tables no longer turn by the same angle at equal distances.
    _keep_in_fp32_modules = ["feat_rope"]

    @register_to_config
    def __init__(
        self,
        sample_size: int = 16,
        patch_size: int = 1,
        in_channels: int = 32,
        hidden_size: int = 1152,
        num_layers: int = 28,
        num_attention_heads: int = 16,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        qk_norm: bool = False,
        adaln_shift: bool = True,
    ) -> None:
        super().__init__()
        _check_sizes(sample_size, patch_size, hidden_size, num_attention_heads)
        grid = sample_size // patch_size
        self.x_embedder = PatchEmbedder(in_channels, hidden_size, patch_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.y_embedder = LabelEmbedder(num_classes, hidden_size)
        # A parameter, not a buffer: public checkpoints and their parameter counts have it so.
        self.pos_embed = nn.Parameter(sincos_position_table(hidden_size, grid)[None], requires_grad=False)
        self.feat_rope = RotaryEmbedding(hidden_size // num_attention_heads, grid)
        self.blocks = nn.ModuleList(
            LightningDiTBlock(hidden_size, num_attention_heads, mlp_ratio, qk_norm, adaln_shift)
            for _ in range(num_layers)
        )
        self.final_layer = FinalLayer(hidden_size, patch_size**2 * in_channels)
        self.gradient_checkpointing = False
        self._initialise()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str] | None, **kwargs: Any) -> Any:
        """As diffusers loads a model, except that weights of another function are refused, not logged.

        Raises:
            ValueError: the weights norm queries and keys and the model does not, or the other way round; or weights
                of the model are missing.
        """
        with_report = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        model, found = loaded
        _check_loaded(pretrained_model_name_or_path, found["missing_keys"], found["unexpected_keys"])
        return (model, found) if with_report else model

    @property
    def null_class(self) -> int:
        """The label that means "no class"."""
        return self.config.num_classes

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, class_labels: Tensor, return_dict: bool = True
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Predict the velocity data - noise.

        Args:
            hidden_states: noisy latent [B, C, H, W], in the model's dtype.
            timestep: native time [B] in [0, 1]; 0 is noise, 1 is data. Where the detail lags it is the clock's,
                which goes on past 1 (see `core.flow`).
            class_labels: [B] int64 in 0 .. num_classes; the last is `null_class`. Not checked here: that
                would wait for the device.
            return_dict: False returns a tuple.

        Returns:
            `Transformer2DModelOutput` whose `sample` is the velocity [B, C, H, W].
        """
        self._check_inputs(hidden_states, timestep, class_labels)
        tokens = self.x_embedder(hidden_states) + self.pos_embed  # [B, N, D]
        conditioning = self.t_embedder(timestep, hidden_states.dtype) + self.y_embedder(class_labels)  # [B, D]
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = self._gradient_checkpointing_func(block, tokens, conditioning, self.feat_rope)
            else:
                tokens = block(tokens, conditioning, self.feat_rope)
        velocity = self._unpatchify(self.final_layer(tokens, conditioning))  # [B, C, H, W]
        return Transformer2DModelOutput(sample=velocity) if return_dict else (velocity,)

    def _unpatchify(self, tokens: Tensor) -> Tensor:
        patch, grid = self.config.patch_size, self.config.sample_size // self.config.patch_size
        patches = tokens.unflatten(2, (patch, patch, -1)).unflatten(1, (grid, grid))  # [B, h, w, p, q, C]
        return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def _check_inputs(self, hidden_states: Tensor, timestep: Tensor, class_labels: Tensor) -> None:
        size, channels = self.config.sample_size, self.config.in_channels
        if hidden_states.ndim != 4 or hidden_states.shape[1] != channels:
            raise ValueError(
                f"LightningDiT cannot read this latent: got shape {tuple(hidden_states.shape)}, allowed "
                f"[B, {channels}, {size}, {size}]. Check that the autoencoder and the transformer have the "
                "same number of channels (davae.widen gives a transformer more)."
            )
        if hidden_states.shape[2:] != (size, size):
            raise ValueError(
                f"LightningDiT has positions for one grid: got {tuple(hidden_states.shape[2:])}, allowed "
                f"{(size, size)}. Give images of the size that the model was made for, or build it with "
                "another sample_size."
            )
        batch = hidden_states.shape[:1]
        if timestep.shape != batch or class_labels.shape != batch:
            raise ValueError(
                f"LightningDiT needs one time and one label per latent: got timestep {tuple(timestep.shape)} "
                f"and class_labels {tuple(class_labels.shape)}, allowed {tuple(batch)} each. "
                "Expand them to the batch."
            )

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.get_parameter("bias"))
        # As a linear layer over the flattened patch.
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        nn.init.zeros_(self.x_embedder.get_parameter("proj.bias"))
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        nn.init.normal_(self.t_embedder.get_parameter("mlp.0.weight"), std=0.02)
        nn.init.normal_(self.t_embedder.get_parameter("mlp.2.weight"), std=0.02)
        for layer in [*self.blocks, self.final_layer]:
            nn.init.zeros_(layer.get_parameter("adaLN_modulation.1.weight"))
        nn.init.zeros_(self.final_layer.linear.weight)


def qk_norm_conflict(in_model: bool) -> str:
    """Why weights that disagree with a model about `qk_norm` are refused; `in_model` is the model's."""
    if in_model:
        return (
            "qk_norm is on in the model and off in the weights: they have no q_norm and k_norm. Freshly made ones "
            "would norm queries and keys that the pretrained model does not, so that fine-tuning would start from "
            "another function than the pretrained one. Set qk_norm (use_qknorm) to false; a model that was "
            "trained without it stays without it."
        )
    return (
        "qk_norm is off in the model and on in the weights: their q_norm and k_norm would be left out, and the "
        "attention would be another function than the trained one. Set qk_norm (use_qknorm) to true."
    )


def _check_loaded(source: str | PathLike[str] | None, missing: Collection[str], unexpected: Collection[str]) -> None:
    for keys, in_model in ((missing, True), (unexpected, False)):
        if "blocks.0.attn.q_norm.weight" in keys:  # of the first block: further ones may lack everything
            raise ValueError(f"The weights in {source} are of another model: {qk_norm_conflict(in_model)}")
    if missing:
        raise ValueError(
            f"The weights in {source} are incomplete: {len(missing)} tensors of LightningDiT are missing, for "
            f"example {', '.join(sorted(missing)[:3])}. Save or download it again."
        )


def _check_sizes(sample_size: int, patch_size: int, hidden_size: int, num_attention_heads: int) -> None:
    if sample_size % patch_size:
        raise ValueError(
            f"The latent grid does not divide into patches: got sample_size={sample_size}, "
            f"patch_size={patch_size}. Choose a sample_size that is a multiple of the patch size."
        )
    if hidden_size % (4 * num_attention_heads):
        raise ValueError(
            f"Attention heads need a whole multiple of 4 channels: got hidden_size={hidden_size}, "
            f"num_attention_heads={num_attention_heads}. Choose a hidden_size divisible by "
            f"{4 * num_attention_heads}."
        )


# Constructor arguments of the published sizes; patch size and channels follow the latent.
LIGHTNINGDIT_SIZES: Final[dict[str, dict[str, int]]] = {
    "B": {"hidden_size": 768, "num_layers": 12, "num_attention_heads": 12},
    "L": {"hidden_size": 1024, "num_layers": 24, "num_attention_heads": 16},
    "XL": {"hidden_size": 1152, "num_layers": 28, "num_attention_heads": 16},
    "1p0B": {"hidden_size": 1536, "num_layers": 24, "num_attention_heads": 24},
    "1p6B": {"hidden_size": 1792, "num_layers": 28, "num_attention_heads": 28},
}

# A stored name: diffusers writes this module into model_index.json, so it must never move.
LightningDiT.__module__ = "davae"
