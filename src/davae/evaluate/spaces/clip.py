"""CLIP ViT-L/14 at 336 px as CMMD's PyTorch port takes it: projected image embeddings of unit length."""

from functools import partial
from typing import Any

import numpy as np
import torch.nn.functional as F
import transformers
from numpy.typing import NDArray
from PIL import Image

from davae.evaluate.spaces.pretrained import load_pretrained
from davae.evaluate.spaces.resize import Pixels
from davae.evaluate.spaces.space import QUANTISATION, FeatureSpace, Loading
from davae.models.clip import normalised
from davae.models.identity import state_hash

NAME = "clip-336"
PUBLIC = "openai/clip-vit-large-patch14-336"


def load(loading: Loading) -> FeatureSpace:
    """The space; see `load_pretrained` for errors."""
    model, about = load_pretrained(transformers.CLIPVisionModelWithProjection, NAME, PUBLIC, loading)
    config: Any = model.config
    side = config.image_size
    return FeatureSpace(
        name=NAME,
        identity={
            "extractor": "CLIP, projected image embedding of unit length",
            "weights": state_hash(model),
            "preprocessing": f"centre square, PIL bicubic to {side} px (antialiased, 8 bit), CLIP's mean and std",
            "quantisation": QUANTISATION,
        },
        network=model,
        lengths={"image": config.projection_dim},
        prepare=partial(prepare, side=side),
        compute=lambda images: {"image": F.normalize(model(pixel_values=images).image_embeds, dim=1)},
        about=about,
    )


def prepare(image: NDArray[np.uint8], side: int) -> Pixels:
    """uint8 [H, W, 3] -> float32 [3, side, side], normalised as CLIP was trained."""
    height, width = image.shape[:2]
    square = min(height, width)
    top, left = (height - square) // 2, (width - square) // 2
    middle = Image.fromarray(image[top : top + square, left : left + square])
    return normalised(np.asarray(middle.resize((side, side), Image.Resampling.BICUBIC)))
