"""DINOv2 ViT-L/14 as dgm-eval takes it: the class token of images squashed to 224 px."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from davae.evaluate.spaces.pretrained import load_pretrained, tensors_hash
from davae.evaluate.spaces.resize import Pixels
from davae.evaluate.spaces.space import QUANTISATION, FeatureSpace, Loading

NAME = "dinov2"
PUBLIC = "facebook/dinov2-large"
SIDE = 224
_MEAN, _STD = (np.array(v, np.float32)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def load(loading: Loading) -> FeatureSpace:
    """The space; see `load_pretrained` for errors."""
    model, about = load_pretrained("Dinov2Model", PUBLIC, loading)
    return FeatureSpace(
        name=NAME,
        identity={
            "extractor": "DINOv2, class token after the last norm",
            "weights": tensors_hash(model),
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
