"""DINOv2 ViT-L/14 as dgm-eval takes it: the class token of images squashed to 224 px."""

import numpy as np
import transformers
from numpy.typing import NDArray
from PIL import Image

from davae.core.pixels import IMAGENET_DEVIATION, IMAGENET_MEAN
from davae.evaluate.spaces.pretrained import load_pretrained
from davae.evaluate.spaces.resize import Pixels
from davae.evaluate.spaces.space import QUANTISATION, FeatureSpace, Loading
from davae.models.identity import state_hash

NAME = "dinov2"
PUBLIC = "facebook/dinov2-large"
SIDE = 224
_MEAN, _STD = (np.array(of, np.float32)[:, None, None] for of in (IMAGENET_MEAN, IMAGENET_DEVIATION))


def load(loading: Loading) -> FeatureSpace:
    """The space; see `load_pretrained` for errors."""
    model, about = load_pretrained(transformers.Dinov2Model, NAME, PUBLIC, loading)
    return FeatureSpace(
        name=NAME,
        identity={
            "extractor": "DINOv2, class token after the last norm",
            "weights": state_hash(model),
            "preprocessing": f"PIL bicubic to {SIDE} x {SIDE} px whatever the shape (antialiased, 8 bit), "
            "ImageNet's mean and deviation",
            "quantisation": QUANTISATION,
        },
        network=model,
        lengths={"class": model.config.hidden_size},
        prepare=prepare,
        compute=lambda images: {"class": model(images).last_hidden_state[:, 0]},
        about=about,
    )


def prepare(image: NDArray[np.uint8]) -> Pixels:
    """uint8 [H, W, 3] -> float32 [3, 224, 224] of mean 0 and deviation 1 over ImageNet."""
    resized = np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return (resized.transpose(2, 0, 1).astype(np.float32) / np.float32(255) - _MEAN) / _STD
