"""Every family in miniature: a tiny transformer, what to expect of it, its stock pipeline without text encoders."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from torch import Tensor

from backbones.transformers import (
    WORDS,
    WORDS_T5,
    dit_transformer,
    flux2_transformer,
    flux_transformer,
    hunyuan_transformer,
    lightning,
    pixart_transformer,
    predict_dit,
    predict_flux,
    predict_flux2,
    predict_hunyuan,
    predict_lightning,
    predict_pixart,
    predict_sana,
    predict_sd3,
    sana_transformer,
    sd3_transformer,
    text,
)
from models.families import dc, flux2, sd, sd3


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
        arguments |= self.call | self.inputs() | settings
        return pipe(**arguments).images


SD3_TEXT = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
SD3_ENCODERS: dict[str, None] = dict.fromkeys(
    ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3", "image_encoder")
)


def _sd3_pipeline(vae: Any, transformer: Any) -> Any:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return diffusers.StableDiffusion3Pipeline(vae=vae, transformer=transformer, scheduler=scheduler, **SD3_ENCODERS)


def _flux_pipeline(vae: Any, transformer: Any) -> Any:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    encoders = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    return diffusers.FluxPipeline(scheduler=scheduler, vae=vae, transformer=transformer, **encoders)


def _flux2_pipeline(vae: Any, transformer: Any) -> Any:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return diffusers.Flux2Pipeline(scheduler, vae, text_encoder=None, tokenizer=None, transformer=transformer)


MASKED_TEXT = ("prompt_embeds", "negative_prompt_embeds")
TEXT_MASKS = ("prompt_attention_mask", "negative_prompt_attention_mask")


def _pixart_pipeline(vae: Any, transformer: Any) -> Any:
    scheduler = diffusers.DPMSolverMultistepScheduler()
    return diffusers.PixArtSigmaPipeline(
        tokenizer=None, text_encoder=None, vae=vae, transformer=transformer, scheduler=scheduler
    )


def _sana_pipeline(vae: Any, transformer: Any) -> Any:
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return diffusers.SanaPipeline(None, None, vae, transformer, scheduler)


def _dit_pipeline(vae: Any, transformer: Any) -> Any:
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    return diffusers.DiTPipeline(transformer, vae, scheduler, id2label={0: "tench, Tinca tinca", 1: "goldfish"})


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
        predict=predict_lightning,
        embedders=("x_embedder.proj",),
        head="final_layer.linear",
        groups=1,
        sizes=(4, 4),
    ),
    "lightningdit patch 2": Family(
        transformer=lambda: lightning(2),
        predict=predict_lightning,
        embedders=("x_embedder.proj",),
        head="final_layer.linear",
        groups=4,
        sizes=(4, 4),
    ),
    "sd3": Family(
        transformer=sd3_transformer,
        predict=predict_sd3,
        embedders=("pos_embed.proj",),
        head="proj_out",
        groups=4,
        vae=sd3,
        pipeline=_sd3_pipeline,
        inputs=lambda: text(*SD3_TEXT),
    ),
    "flux": Family(
        transformer=flux_transformer,
        predict=predict_flux,
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
        predict=predict_flux2,
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
        predict=predict_pixart,
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
        predict=predict_sana,
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
        predict=predict_dit,
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
        predict=predict_hunyuan,
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
