"""A tiny text-to-image pair: SD3's own classes, CLIP and T5 with real tokenizers over a small vocabulary."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from davae.data.solids import HUES, MATERIALS, SHAPES

WORDS = ("a", *MATERIALS, *HUES, *SHAPES)
"""The captions of `solids` are made of these."""
MAX_LENGTH = 12
"""Tokens of both tokenizers."""


def clip_tokenizer() -> CLIPTokenizer:
    """Each word of `solids` is one token, anything else goes letter by letter."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            if pair not in merges:
                merges.append(pair)
                vocabulary.append("".join(pair))
            pieces[:2] = ["".join(pair)]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    numbered = {token: number for number, token in enumerate(dict.fromkeys(vocabulary))}
    return CLIPTokenizer(numbered, merges, model_max_length=MAX_LENGTH)


def t5_tokenizer() -> T5Tokenizer:
    """The same words for T5."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = [*(f"\u2581{word}" for word in WORDS), "\u2581", *letters]
    vocabulary = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        *((piece, -1.0 * len(piece) ** 0) for piece in pieces),
    ]
    return T5Tokenizer(vocabulary, extra_ids=0, model_max_length=MAX_LENGTH)


def clip_encoder(tokenizer: CLIPTokenizer, projection: int, width: int = 8) -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_LENGTH,
        projection_dim=projection,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config).eval()


def t5_encoder(tokenizer: T5Tokenizer, width: int = 24) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config).eval()


def tiny_vae() -> AutoencoderKL:
    """f4 with 4 channels: 16 px images have 4x4 latents."""
    return AutoencoderKL(
        latent_channels=4,
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        mid_block_add_attention=False,
        scaling_factor=0.7,
        shift_factor=0.1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=16,
    ).eval()


def tiny_sd3() -> SD3Transformer2DModel:
    """Two blocks of width 16, patches of 2; no weight is left at a zero start."""
    model = SD3Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=24,
        caption_projection_dim=16,
        pooled_projection_dim=20,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    ).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return model


def tiny_text_pipeline() -> Any:
    """A stock pipeline for 16 px images; upgraded by 2 it makes 32 px. The same bits every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip, t5 = clip_tokenizer(), t5_tokenizer()
        return StableDiffusion3Pipeline(
            transformer=tiny_sd3(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=tiny_vae(),
            text_encoder=clip_encoder(clip, 8),
            tokenizer=clip,
            text_encoder_2=clip_encoder(clip, 12),
            tokenizer_2=clip_tokenizer(),
            text_encoder_3=t5_encoder(t5),
            tokenizer_3=t5,
        )


def build_tiny_text_pair(folder: Path) -> Path:
    """Save the pair as a pipeline folder."""
    tiny_text_pipeline().save_pretrained(folder)
    return folder
