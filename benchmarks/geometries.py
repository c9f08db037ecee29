"""Rows of `benchmarks/throughput.py`: published pipelines at full geometry, native and upgraded.

Transformers come from `davae.backbones.public`. Autoencoders and text encoders have their published geometry. Steps
and guidance are the defaults of diffusers' pipelines; SD3.5's are the paper's, 30 steps at guidance 2.5.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import diffusers
import transformers

from davae.backbones.public import PUBLIC, PublicModel


def _kl(channels: int, widths: tuple[int, ...] = (128, 256, 512, 512), **config: Any) -> dict[str, Any]:
    """Config of an `AutoencoderKL`; its compression is 2 ** (number of widths - 1)."""
    return {
        "latent_channels": channels,
        "block_out_channels": widths,
        "layers_per_block": 2,
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        **config,
    }


_PLAIN = {"use_quant_conv": False, "use_post_quant_conv": False}
_DC_BLOCKS = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3

AUTOENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "SDXL f8c4": ("AutoencoderKL", _kl(4, scaling_factor=0.13025)),
    "SD3 f8c16": ("AutoencoderKL", _kl(16, scaling_factor=1.5305, shift_factor=0.0609, **_PLAIN)),
    "FLUX f8c16": ("AutoencoderKL", _kl(16, scaling_factor=0.3611, shift_factor=0.1159, **_PLAIN)),
    "VA-VAE f16d32": ("AutoencoderKL", _kl(32, (128, 128, 256, 256, 512), scaling_factor=1.0, **_PLAIN)),
    "DC-AE f32c32": (  # the one of SANA; widths and depths are the class's defaults
        "AutoencoderDC",
        {
            "encoder_block_types": _DC_BLOCKS,
            "decoder_block_types": _DC_BLOCKS,
            "downsample_block_type": "conv",
            "upsample_block_type": "interpolate",
            "scaling_factor": 0.41407,
        },
    ),
}
"""Name -> class of diffusers and its config."""


def _narrow(class_name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The same levels, 32 channels wide and one block deep."""
    if class_name == "AutoencoderKL":
        return {**config, "block_out_channels": (32,) * len(config["block_out_channels"]), "layers_per_block": 1}
    levels = len(config["encoder_block_types"])
    changes = {
        f"{part}_{what}": (value,) * levels
        for part in ("encoder", "decoder")
        for what, value in (("block_out_channels", 32), ("layers_per_block", 1))
    }
    return {**config, **changes}


_CLIP_L = {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12, "projection_dim": 768}
_CLIP_G = {"hidden_size": 1280, "num_attention_heads": 20, "num_hidden_layers": 32, "projection_dim": 1280}
_T5 = {"num_heads": 64, "num_layers": 24, "d_kv": 64, "feed_forward_proj": "gated-gelu"}

ENCODERS: dict[str, tuple[type, Any]] = {
    "CLIP-L": (
        transformers.CLIPTextModelWithProjection,
        transformers.CLIPTextConfig(**_CLIP_L, intermediate_size=3072),
    ),
    "CLIP-G": (
        transformers.CLIPTextModelWithProjection,
        transformers.CLIPTextConfig(**_CLIP_G, intermediate_size=5120, hidden_act="gelu"),
    ),
    "T5-XXL": (transformers.T5EncoderModel, transformers.T5Config(**_T5, d_model=4096, d_ff=10240)),
    "mT5-XL": (
        transformers.T5EncoderModel,
        transformers.T5Config(**_T5 | {"num_heads": 32}, d_model=2048, d_ff=5120, vocab_size=250112),
    ),
    "BERT": (
        transformers.BertModel,
        transformers.BertConfig(
            hidden_size=1024,
            num_hidden_layers=24,
            num_attention_heads=16,
            intermediate_size=4096,
            vocab_size=47020,
        ),
    ),
    "Gemma-2-2B": (
        transformers.Gemma2Model,
        transformers.Gemma2Config(),  # the defaults are those of the 2B model
    ),
}
"""Name -> class of transformers and its config."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """How a published pipeline is built and called."""

    pipeline: str
    """Its class, of diffusers or davae."""
    scheduler: Callable[[], Any]
    prompt: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Argument of the call -> shape of one prompt's tensor. One axis is a mask where the name says so."""
    encoders: tuple[tuple[str, int], ...] = ()
    """(name in `ENCODERS`, tokens) of every text encoder."""
    guidance_doubles: bool = True
    """Whether guidance takes a second prediction. FLUX.1-dev takes the scale as an input."""
    components: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of its class."""
    call: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the call."""
    tiny: Mapping[str, Any] = field(default_factory=dict)
    """Config entries of the transformer that make it small enough for a test."""


def _flow(shift: float) -> Callable[[], Any]:
    return lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)


_UNBINNED = {"use_resolution_binning": False}
_NO_TEXT = {"negative_prompt": None}
_TWO_HEADS = {"num_layers": 1, "num_attention_heads": 2}
_SD3 = Family(
    pipeline="StableDiffusion3Pipeline",
    scheduler=_flow(3.0),
    prompt={"prompt_embeds": (333, 4096), "pooled_prompt_embeds": (2048,)},
    encoders=(("CLIP-L", 77), ("CLIP-G", 77), ("T5-XXL", 256)),
    tiny=_TWO_HEADS | {"caption_projection_dim": 128, "dual_attention_layers": (0,)},
)
_FLUX = Family(
    pipeline="FluxPipeline",
    scheduler=_flow(3.0),
    prompt={"prompt_embeds": (512, 4096), "pooled_prompt_embeds": (768,)},
    encoders=(("CLIP-L", 77), ("T5-XXL", 512)),
    guidance_doubles=False,
    tiny=_TWO_HEADS | {"num_single_layers": 1},
)
_PIXART = Family(
    pipeline="PixArtSigmaPipeline",
    scheduler=diffusers.DPMSolverMultistepScheduler,
    prompt={"prompt_embeds": (300, 4096), "prompt_attention_mask": (300,)},
    encoders=(("T5-XXL", 300),),
    call=_UNBINNED | _NO_TEXT,
    tiny=_TWO_HEADS | {"cross_attention_dim": 144},
)
_HUNYUAN = Family(
    pipeline="HunyuanDiTPipeline",
    scheduler=lambda: diffusers.DDPMScheduler(prediction_type="v_prediction"),
    prompt={
        "prompt_embeds": (77, 1024),
        "prompt_attention_mask": (77,),
        "prompt_embeds_2": (256, 2048),
        "prompt_attention_mask_2": (256,),
    },
    encoders=(("BERT", 77), ("mT5-XL", 256)),
    components={"requires_safety_checker": False},
    call=_UNBINNED,
    tiny=_TWO_HEADS | {"num_layers": 2, "hidden_size": 176},
)
_SANA = Family(
    pipeline="SanaPipeline",
    scheduler=lambda: diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    ),
    prompt={"prompt_embeds": (300, 2304), "prompt_attention_mask": (300,)},
    encoders=(("Gemma-2-2B", 300),),
    call=_UNBINNED | _NO_TEXT,
    tiny=_TWO_HEADS | {"num_cross_attention_heads": 2, "cross_attention_head_dim": 32, "cross_attention_dim": 64},
)
_LIGHTNING = Family(pipeline="LightningDiTPipeline", scheduler=_flow(1 / 0.3), tiny=_TWO_HEADS | {"hidden_size": 64})

_SANA_4800M = PublicModel(
    transformer=PUBLIC["SANA-1.6B"].transformer,
    config=PUBLIC["SANA-1.6B"].config | {"num_layers": 60, "qk_norm": "rms_norm_across_heads"},
    compression=32,
)
"""SANA-1.5 4.8B: the blocks of the 1.6B model, three times as many, with QK-norm."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A model at one image size."""

    title: str
    family: Family
    model: PublicModel
    autoencoder: tuple[str, dict[str, Any]]
    """Class of diffusers and its config."""
    side: int
    """Of the image, pixels."""
    steps: int
    """Of a whole image."""
    guidance: float
    detail: int = 0
    """D of the upgrade by 2; 0 is the published model."""
    enlarged: int = 1
    """How much the image is enlarged after it was decoded (the baseline that draws small)."""
    native: str | None = None
    """Name of the row that this one is compared with."""
    paper: float | None = None
    """Images a second in the paper's table: one A100, bf16, batch 10."""

    @property
    def scale(self) -> int:
        """s: 2 where the pair is upgraded."""
        return 2 if self.detail else 1

    def tiny(self) -> "Row":
        """The same path through one narrow block and a narrow autoencoder, on an eighth of the side."""
        class_name, config = self.autoencoder
        model = replace(self.model, config={**self.model.config, **self.family.tiny})
        return replace(self, model=model, autoencoder=(class_name, _narrow(class_name, config)), side=self.side // 8)


_SD35 = {
    "family": _SD3,
    "model": PUBLIC["SD3.5-Medium"],
    "autoencoder": AUTOENCODERS["SD3 f8c16"],
    "steps": 30,
    "guidance": 2.5,
}
_XL = {
    "family": _LIGHTNING,
    "model": PUBLIC["LightningDiT-XL/1"],
    "autoencoder": AUTOENCODERS["VA-VAE f16d32"],
    "side": 512,
    "steps": 249,
    "guidance": 6.7,
}

ROWS = {
    "sd35m-1k": Row(title="SD3.5-Medium, 1024 px", side=1024, paper=0.25, **_SD35),
    "sd35m-1k-upgraded": Row(
        title="SD3.5-Medium, 1024 px, upgraded", side=1024, detail=16, native="sd35m-1k", paper=1.03, **_SD35
    ),
    "sd35m-512-enlarged": Row(
        title="SD3.5-Medium, 512 px, enlarged to 1024",
        side=512,
        enlarged=2,
        native="sd35m-1k",
        paper=1.03,
        **_SD35,
    ),
    "sd35m-2k": Row(title="SD3.5-Medium, 2048 px", side=2048, **_SD35),
    "sd35m-2k-upgraded": Row(
        title="SD3.5-Medium, 2048 px, upgraded", side=2048, detail=16, native="sd35m-2k", **_SD35
    ),
    "lightningdit-512": Row(title="LightningDiT-XL, 512 px", **_XL),
    "lightningdit-512-upgraded": Row(
        title="LightningDiT-XL, 512 px, upgraded", detail=96, native="lightningdit-512", **_XL
    ),
    "pixart-sigma": Row(
        title="PixArt-Sigma, 1024 px",
        family=_PIXART,
        model=PUBLIC["PixArt-Sigma-XL/2"],
        autoencoder=AUTOENCODERS["SDXL f8c4"],
        side=1024,
        steps=20,
        guidance=4.5,
        paper=0.40,
    ),
    "hunyuan-dit": Row(
        title="Hunyuan-DiT, 1024 px",
        family=_HUNYUAN,
        model=PUBLIC["Hunyuan-DiT v1.2"],
        autoencoder=AUTOENCODERS["SDXL f8c4"],
        side=1024,
        steps=50,
        guidance=5.0,
        paper=0.05,
    ),
    "sana-1.5": Row(
        title="SANA-1.5 4.8B, 1024 px",
        family=_SANA,
        model=_SANA_4800M,
        autoencoder=AUTOENCODERS["DC-AE f32c32"],
        side=1024,
        steps=20,
        guidance=4.5,
        paper=0.26,
    ),
    "flux-dev": Row(
        title="FLUX.1-dev, 1024 px",
        family=_FLUX,
        model=PUBLIC["FLUX.1-dev"],
        autoencoder=AUTOENCODERS["FLUX f8c16"],
        side=1024,
        steps=28,
        guidance=3.5,
        paper=0.04,
    ),
    "sd3-medium": Row(
        title="SD3-Medium, 1024 px",
        family=_SD3,
        model=PUBLIC["SD3-Medium"],
        autoencoder=AUTOENCODERS["SD3 f8c16"],
        side=1024,
        steps=28,
        guidance=7.0,
        paper=0.36,
    ),
}
"""Name -> row: the pairs of native and upgraded, then the others of the paper's table."""
