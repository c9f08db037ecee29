"""CLIP ViT-L/14 at 336 px as CMMD's PyTorch port takes it: projected image embeddings of unit length."""

from functools import partial

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from davae.evaluate.spaces.pretrained import load_pretrained, tensors_hash
from davae.evaluate.spaces.resize import Pixels
from davae.evaluate.spaces.space import QUANTISATION, FeatureSpace, Loading

NAME = "clip-336"
PUBLIC = "openai/clip-vit-large-patch14-336"
_MEAN, _STD = (
    np.array(v, np.float32)[:, None, None]
    for v in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
)


def load(loading: Loading) -> FeatureSpace:
    """The space; see `load_pretrained` for errors."""
    model, about = load_pretrained("CLIPVisionModelWithProjection", PUBLIC, loading)
    side = model.config.image_size
    return FeatureSpace(
        name=NAME,
        identity={
            "extractor": "CLIP, projected image embedding of unit length",
            "weights": tensors_hash(model),
            "preprocessing": f"centre square, PIL bicubic to {side} px (antialiased, 8 bit), CLIP's mean and std",
            "quantisation": QUANTISATION,
        },
        network=model,
        lengths={"image": model.config.projection_dim},
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
    resized = np.asarray(middle.resize((side, side), Image.Resampling.BICUBIC))
    return (resized.transpose(2, 0, 1).astype(np.float32) / np.float32(255) - _MEAN) / _STD
