"""Tiny judges of images: CLIP and Mask2Former, transformers' own classes with weights that mean nothing."""

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, Mask2FormerConfig, SwinConfig

from davae.evaluate.geneval.words import CLASSES
from davae.models.mask2former import Mask2FormerNetwork
from tiny_text import MAX_LENGTH, clip_tokenizer

SIDE = 16
"""Of the images that the tiny CLIP takes, px."""


def build_tiny_clip(folder: Path) -> Path:
    """A CLIP of 8 numbers, with its tokenizer."""
    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    width = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = CLIPConfig(
        text_config={**width, **special, "vocab_size": len(tokenizer), "max_position_embeddings": MAX_LENGTH},
        vision_config={**width, "image_size": SIDE, "patch_size": 8, "projection_dim": 8},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build_tiny_detector(folder: Path, classes: int = len(CLASSES)) -> Path:
    """A Mask2Former of 6 queries."""
    torch.manual_seed(0)
    swin = SwinConfig(
        image_size=32,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=swin,
        hidden_dim=32,
        feature_size=32,
        mask_feature_size=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=6,
        num_labels=classes,
        train_num_points=4,
    )
    Mask2FormerNetwork(config).save_pretrained(folder)
    return folder
