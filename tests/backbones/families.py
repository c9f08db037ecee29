"""Tiny transformers and stock pipelines of every family, built from the real classes.

Every base autoencoder has 4 latent channels; a token stands for 2 latent positions a side (SANA: 1).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from torch import Tensor

from davae import LightningDiT
from models.families import CHANNELS, dc, flux2, sd, sd3

TEXT, POOLED, WORDS = 12, 10, 5


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


def masks(*names: str, words: int = WORDS) -> dict[str, Tensor]:
    """Attention masks [1, words]: the last word is padding."""
    mask = torch.ones(1, words, dtype=torch.long)
    mask[:, -1] = 0
    return dict.fromkeys(names, mask)


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family in miniature."""

    transformer: Callable[[], Any]
    predict: Callable[[Any, Tensor], Tensor]
    """(transformer, latent [B, K, h, w]) -> its prediction [B, K or 2 K, h, w], as the pipeline unpacks it."""
    embedders: tuple[str, ...]
    head: str
    groups: int
    """Groups of channels in the head's rows."""
    packing: int = 1
    """Features of a token to a latent channel, where the pipeline packs."""
    sizes: tuple[int, int] = (8, 12)
    """Latent height and width that `predict` can take."""
    predictions: int = 1
    vae: Callable[[], Any] | None = None
    pipeline: Callable[[Any, Any], Any] | None = None
    """(autoencoder, transformer) -> the stock pipeline."""
    inputs: Callable[[], dict[str, Tensor]] = dict
    """Arguments of a call that are tensors."""
    call: dict[str, Any] = field(default_factory=dict)
    """The others."""
    upgraded_call: dict[str, Any] = field(default_factory=dict)
    """What an upgraded pipeline must be told besides."""
    side: int = 32
    """Of the base pipeline's images."""
    sized: bool = True
    """Whether a call takes height and width."""

    def make(self) -> Any:
        """The stock pipeline."""
        assert self.vae is not None
        assert self.pipeline is not None
        pipe = self.pipeline(self.vae(), self.transformer())
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def draw(self, pipe: Any, upgraded: bool = True, **settings: Any) -> Any:
        """Images [B, H, W, 3] in [0, 1], or what `output_type` asks for."""
        side = self.side * (2 if upgraded else 1)
        arguments = {"num_inference_steps": 2, "output_type": "np", "generator": torch.Generator().manual_seed(3)}
        arguments |= {"height": side, "width": side} if self.sized else {}
        arguments |= self.call | self.inputs() | (self.upgraded_call if upgraded else {}) | settings
        return pipe(**arguments).images


def _time(latent: Tensor) -> Tensor:
    return torch.rand(len(latent), generator=torch.Generator().manual_seed(7))


# LightningDiT


def lightning(patch_size: int = 1) -> LightningDiT:
    """Native time, class labels."""
    return with_noise(LightningDiT(4, patch_size, 6, 32, 2, 2, num_classes=5))


def _predict_lightning(model: Any, latent: Tensor) -> Tensor:
    return model(latent, _time(latent), torch.arange(len(latent)) % 5).sample


# SD3

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
SD3_TEXT = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
SD3_ENCODERS: dict[str, None] = dict.fromkeys(
    ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3", "image_encoder")
)


def sd3_transformer(**changes: Any) -> Any:
    """Image and text streams, position table in the checkpoint."""
    return with_noise(diffusers.SD3Transformer2DModel(**(SD3_CONFIG | {"sample_size": 8} | changes)))


def _predict_sd3(model: Any, latent: Tensor) -> Tensor:
    states = text("states", "pooled", batch=len(latent))
    return model(latent, states["states"], states["pooled"], 1000 * _time(latent)).sample


def _sd3_pipeline(vae: Any, transformer: Any) -> Any:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return diffusers.StableDiffusion3Pipeline(vae=vae, transformer=transformer, scheduler=scheduler, **SD3_ENCODERS)


# FLUX.1 and FLUX.2


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


def _predict_flux(model: Any, latent: Tensor) -> Tensor:
    batch, channels, height, width = latent.shape
    pipe, states = diffusers.FluxPipeline, text("states", "pooled", batch=len(latent))
    predicted = model(
        pipe._pack_latents(latent, batch, channels, height, width),
        encoder_hidden_states=states["states"],
        pooled_projections=states["pooled"],
        timestep=_time(latent),
        img_ids=pipe._prepare_latent_image_ids(batch, height // 2, width // 2, "cpu", torch.float32),
        txt_ids=torch.zeros(WORDS, 3),
        guidance=torch.full((batch,), 3.5),
    ).sample
    return pipe._unpack_latents(predicted, height, width, vae_scale_factor=1)


def _flux_pipeline(vae: Any, transformer: Any) -> Any:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    encoders = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    return diffusers.FluxPipeline(scheduler=scheduler, vae=vae, transformer=transformer, **encoders)


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


def _predict_flux2(model: Any, latent: Tensor) -> Tensor:
    pipe, states = diffusers.Flux2Pipeline, text("states", batch=len(latent))["states"]
    patches = pipe._patchify_latents(latent)
    ids = pipe._prepare_latent_ids(patches)
    predicted = model(
        pipe._pack_latents(patches),
        encoder_hidden_states=states,
        timestep=_time(latent),
        img_ids=ids,
        txt_ids=pipe._prepare_text_ids(states),
        guidance=torch.full((len(latent),), 4.0),
    ).sample
    return pipe._unpatchify_latents(pipe._unpack_latents_with_ids(predicted, ids))


def _flux2_pipeline(vae: Any, transformer: Any) -> Any:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return diffusers.Flux2Pipeline(scheduler, vae, text_encoder=None, tokenizer=None, transformer=transformer)


# PixArt-Sigma and SANA

MASKED_TEXT = ("prompt_embeds", "negative_prompt_embeds")
TEXT_MASKS = ("prompt_attention_mask", "negative_prompt_attention_mask")


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


def _predict_pixart(model: Any, latent: Tensor) -> Tensor:
    states = text("states", batch=len(latent))["states"]
    sizes = {"resolution": None, "aspect_ratio": None}
    return model(latent, states, 1000 * _time(latent), added_cond_kwargs=sizes).sample


def _pixart_pipeline(vae: Any, transformer: Any) -> Any:
    scheduler = diffusers.DPMSolverMultistepScheduler()
    return diffusers.PixArtSigmaPipeline(
        tokenizer=None, text_encoder=None, vae=vae, transformer=transformer, scheduler=scheduler
    )


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


def _predict_sana(model: Any, latent: Tensor) -> Tensor:
    return model(latent, text("states", batch=len(latent))["states"], 1000 * _time(latent)).sample


def _sana_pipeline(vae: Any, transformer: Any) -> Any:
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return diffusers.SanaPipeline(None, None, vae, transformer, scheduler)


# DiT


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


def _predict_dit(model: Any, latent: Tensor) -> Tensor:
    labels = torch.arange(len(latent))
    return model(latent, timestep=(1000 * _time(latent)).long(), class_labels=labels).sample


def _dit_pipeline(vae: Any, transformer: Any) -> Any:
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    return diffusers.DiTPipeline(transformer, vae, scheduler, id2label={0: "tench, Tinca tinca", 1: "goldfish"})


# Hunyuan-DiT

WORDS_T5 = 7


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


def _predict_hunyuan(model: Any, latent: Tensor) -> Tensor:
    batch, _, height, width = latent.shape
    tokens = (height // 2) * (width // 2)
    angles = torch.arange(tokens)[:, None] * torch.linspace(1, 0.1, 8)
    return model(
        latent,
        1000 * _time(latent),
        encoder_hidden_states=text("clip", batch=batch)["clip"],
        text_embedding_mask=torch.ones(batch, WORDS),
        encoder_hidden_states_t5=text("t5", width=8, words=WORDS_T5, batch=batch)["t5"],
        text_embedding_mask_t5=torch.ones(batch, WORDS_T5),
        image_meta_size=torch.tensor([[64.0, 64, 64, 64, 0, 0]]).repeat(batch, 1),
        style=torch.zeros(batch, dtype=torch.long),
        image_rotary_emb=(angles.cos(), angles.sin()),
        return_dict=False,
    )[0]


def _hunyuan_pipeline(vae: Any, transformer: Any) -> Any:
    return diffusers.HunyuanDiTPipeline(
        vae=vae,
        transformer=transformer,
        scheduler=diffusers.DDIMScheduler(prediction_type="v_prediction", clip_sample=False),
        requires_safety_checker=False,
        **dict.fromkeys(
            ("text_encoder", "tokenizer", "safety_checker", "feature_extractor", "text_encoder_2", "tokenizer_2")
        ),
    )


def _hunyuan_inputs() -> dict[str, Tensor]:
    t5 = text("prompt_embeds_2", "negative_prompt_embeds_2", width=8, words=WORDS_T5)
    t5_masks = masks(*(f"{name}_2" for name in TEXT_MASKS), words=WORDS_T5)
    return text(*MASKED_TEXT) | masks(*TEXT_MASKS) | t5 | t5_masks


def sd_f8() -> Any:
    """SDXL's autoencoder: Hunyuan-DiT's pipeline knows only compression 8."""
    types = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return sd(block_out_channels=(8, 8, 8, 16), **types)


_SIGMA = {"predictions": 2, "groups": 8}
_NO_BINNING = {"use_resolution_binning": False}
FAMILIES = {
    "lightningdit": Family(
        transformer=lightning,
        predict=_predict_lightning,
        embedders=("x_embedder.proj",),
        head="final_layer.linear",
        groups=1,
        sizes=(4, 4),
    ),
    "lightningdit patch 2": Family(
        transformer=lambda: lightning(2),
        predict=_predict_lightning,
        embedders=("x_embedder.proj",),
        head="final_layer.linear",
        groups=4,
        sizes=(4, 4),
    ),
    "sd3": Family(
        transformer=sd3_transformer,
        predict=_predict_sd3,
        embedders=("pos_embed.proj",),
        head="proj_out",
        groups=4,
        vae=sd3,
        pipeline=_sd3_pipeline,
        inputs=lambda: text(*SD3_TEXT),
    ),
    "flux": Family(
        transformer=flux_transformer,
        predict=_predict_flux,
        embedders=("x_embedder",),
        head="proj_out",
        groups=1,
        packing=4,
        vae=sd3,
        pipeline=_flux_pipeline,
        inputs=lambda: text("prompt_embeds", "pooled_prompt_embeds"),
    ),
    "flux2": Family(
        transformer=flux2_transformer,
        predict=_predict_flux2,
        embedders=("x_embedder",),
        head="proj_out",
        groups=1,
        packing=4,
        vae=flux2,
        pipeline=_flux2_pipeline,
        inputs=lambda: text("prompt_embeds"),
    ),
    "pixart": Family(
        transformer=pixart_transformer,
        predict=_predict_pixart,
        embedders=("pos_embed.proj",),
        head="proj_out",
        **_SIGMA,
        vae=sd,
        pipeline=_pixart_pipeline,
        inputs=lambda: text(*MASKED_TEXT) | masks(*TEXT_MASKS),
        call=_NO_BINNING | {"negative_prompt": None},
    ),
    "sana": Family(
        transformer=sana_transformer,
        predict=_predict_sana,
        embedders=("patch_embed.proj",),
        head="proj_out",
        groups=1,
        vae=dc,
        pipeline=_sana_pipeline,
        inputs=lambda: text(*MASKED_TEXT) | masks(*TEXT_MASKS),
        call=_NO_BINNING | {"negative_prompt": None},
    ),
    "dit": Family(
        transformer=dit_transformer,
        predict=_predict_dit,
        embedders=("pos_embed.proj",),
        head="proj_out_2",
        **_SIGMA,
        sizes=(8, 8),
        vae=sd,
        pipeline=_dit_pipeline,
        call={"class_labels": [1]},
        sized=False,
    ),
    "hunyuan": Family(
        transformer=hunyuan_transformer,
        predict=_predict_hunyuan,
        embedders=("pos_embed.proj",),
        head="proj_out",
        **_SIGMA,
        vae=sd_f8,
        pipeline=_hunyuan_pipeline,
        inputs=_hunyuan_inputs,
        call=_NO_BINNING,
        side=64,
    ),
}
PIPELINES = {name: family for name, family in FAMILIES.items() if family.pipeline is not None}
