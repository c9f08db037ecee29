"""Tiny transformers of every family from the real classes, and what each predicts for a latent.

All take 4 latent channels (LightningDiT: 6); a token stands for 2 latent positions a side (SANA: 1).
"""

from typing import Any

import diffusers
import torch
from torch import Tensor

from davae import LightningDiT
from models.families import CHANNELS

TEXT, POOLED, WORDS, WORDS_T5 = 12, 10, 5, 7


@torch.no_grad()
def with_noise(model: Any) -> Any:
    """A fresh model predicts zero, which would prove nothing."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def text(*names: str, width: int = TEXT, words: int = WORDS, batch: int = 1) -> dict[str, Tensor]:
    """Embeddings [batch, words, width], or [batch, POOLED] where the name says pooled, the same in every call."""
    generator = torch.Generator().manual_seed(5)
    shapes = {name: (batch, POOLED) if "pooled" in name else (batch, words, width) for name in names}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def time_of(latent: Tensor) -> Tensor:
    """Times [B] in [0, 1], the same in every call."""
    return torch.rand(len(latent), generator=torch.Generator().manual_seed(7))


def lightning(patch_size: int = 1) -> LightningDiT:
    """Native time, class labels."""
    return with_noise(LightningDiT(4, patch_size, 6, 32, 2, 2, num_classes=5))


def predict_lightning(model: Any, latent: Tensor) -> Tensor:
    return model(latent, time_of(latent), torch.arange(len(latent)) % 5).sample


SD3_CONFIG: dict[str, Any] = {
    "sample_size": 24,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": TEXT,
    "caption_projection_dim": 16,
    "pooled_projection_dim": POOLED,
    "pos_embed_max_size": 12,
    "dual_attention_layers": (0,),
    "qk_norm": "rms_norm",
}


def sd3_transformer(**changes: Any) -> Any:
    """Image and text streams, position table in the checkpoint."""
    return with_noise(diffusers.SD3Transformer2DModel(**(SD3_CONFIG | {"sample_size": 8} | changes)))


def predict_sd3(model: Any, latent: Tensor) -> Tensor:
    states = text("states", "pooled", batch=len(latent))
    return model(latent, states["states"], states["pooled"], 1000 * time_of(latent)).sample


def flux_transformer(**changes: Any) -> Any:
    """Double and single blocks, packed latents."""
    config = {
        "in_channels": 4 * CHANNELS,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": TEXT,
        "pooled_projection_dim": POOLED,
        "axes_dims_rope": (2, 2, 4),
        "guidance_embeds": True,
    }
    return with_noise(diffusers.FluxTransformer2DModel(**(config | changes)))


def predict_flux(model: Any, latent: Tensor) -> Tensor:
    batch, channels, height, width = latent.shape
    pipe, states = diffusers.FluxPipeline, text("states", "pooled", batch=len(latent))
    predicted = model(
        pipe._pack_latents(latent, batch, channels, height, width),
        encoder_hidden_states=states["states"],
        pooled_projections=states["pooled"],
        timestep=time_of(latent),
        img_ids=pipe._prepare_latent_image_ids(batch, height // 2, width // 2, "cpu", torch.float32),
        txt_ids=torch.zeros(WORDS, 3),
        guidance=torch.full((batch,), 3.5),
    ).sample
    return pipe._unpack_latents(predicted, height, width, vae_scale_factor=1)


def flux2_transformer(**changes: Any) -> Any:
    """No biases, shared AdaLN, packed latents."""
    config = {
        "in_channels": 4 * CHANNELS,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": TEXT,
        "timestep_guidance_channels": 16,
        "axes_dims_rope": (2, 2, 2, 2),
    }
    return with_noise(diffusers.Flux2Transformer2DModel(**(config | changes)))


def predict_flux2(model: Any, latent: Tensor) -> Tensor:
    pipe, states = diffusers.Flux2Pipeline, text("states", batch=len(latent))["states"]
    patches = pipe._patchify_latents(latent)
    ids = pipe._prepare_latent_ids(patches)
    predicted = model(
        pipe._pack_latents(patches),
        encoder_hidden_states=states,
        timestep=time_of(latent),
        img_ids=ids,
        txt_ids=pipe._prepare_text_ids(states),
        guidance=torch.full((len(latent),), 4.0),
    ).sample
    return pipe._unpatchify_latents(pipe._unpack_latents_with_ids(predicted, ids))


def pixart_transformer(**changes: Any) -> Any:
    """Learned sigma, position table computed."""
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 2,
        "cross_attention_dim": 16,
        "sample_size": 8,
        "interpolation_scale": 2,
        "caption_channels": TEXT,
        "use_additional_conditions": False,
    }
    return with_noise(diffusers.PixArtTransformer2DModel(**(config | changes)))


def predict_pixart(model: Any, latent: Tensor) -> Tensor:
    states = text("states", batch=len(latent))["states"]
    sizes = {"resolution": None, "aspect_ratio": None}
    return model(latent, states, 1000 * time_of(latent), added_cond_kwargs=sizes).sample


def sana_transformer(**changes: Any) -> Any:
    """Linear attention, patches of 1."""
    config = {
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 2,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 8,
        "cross_attention_dim": 16,
        "caption_channels": TEXT,
        "sample_size": 32,
    }
    return with_noise(diffusers.SanaTransformer2DModel(**(config | changes)))


def predict_sana(model: Any, latent: Tensor) -> Tensor:
    return model(latent, text("states", batch=len(latent))["states"], 1000 * time_of(latent)).sample


def dit_transformer(**changes: Any) -> Any:
    """Learned sigma, class labels."""
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "out_channels": 2 * CHANNELS,
        "num_layers": 2,
        "sample_size": 8,
    }
    return with_noise(diffusers.DiTTransformer2DModel(**(config | changes)))


def predict_dit(model: Any, latent: Tensor) -> Tensor:
    labels = torch.arange(len(latent))
    return model(latent, timestep=(1000 * time_of(latent)).long(), class_labels=labels).sample


def hunyuan_transformer(**changes: Any) -> Any:
    """Learned sigma, two texts, rotary positions as an argument, conditioned on image sizes."""
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": CHANNELS,
        "patch_size": 2,
        "sample_size": 8,
        "hidden_size": 16,
        "num_layers": 4,
        "cross_attention_dim": TEXT,
        "cross_attention_dim_t5": 8,
        "pooled_projection_dim": POOLED,
        "text_len": WORDS,
        "text_len_t5": WORDS_T5,
    }
    return with_noise(diffusers.HunyuanDiT2DModel(**(config | changes)))


def predict_hunyuan(model: Any, latent: Tensor) -> Tensor:
    batch, _, height, width = latent.shape
    tokens = (height // 2) * (width // 2)
    angles = torch.arange(tokens)[:, None] * torch.linspace(1, 0.1, 8)
    return model(
        latent,
        1000 * time_of(latent),
        encoder_hidden_states=text("clip", batch=batch)["clip"],
        text_embedding_mask=torch.ones(batch, WORDS),
        encoder_hidden_states_t5=text("t5", width=8, words=WORDS_T5, batch=batch)["t5"],
        text_embedding_mask_t5=torch.ones(batch, WORDS_T5),
        image_meta_size=torch.tensor([[64.0, 64, 64, 64, 0, 0]]).repeat(batch, 1),
        style=torch.zeros(batch, dtype=torch.long),
        image_rotary_emb=(angles.cos(), angles.sin()),
        return_dict=False,
    )[0]
