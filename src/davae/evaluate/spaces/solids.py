"""The judge of `solids`: its pooled features, and what it names. It comes with the package; nothing is fetched."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from davae.data.solids import ATTRIBUTES
from davae.evaluate.spaces.resize import Pixels
from davae.evaluate.spaces.space import QUANTISATION, FeatureSpace, Loading
from davae.models.identity import weights_hash
from davae.models.saving import verify
from davae.models.solids_judge import SolidsJudge, embedded_judge

NAME = "solids"
FINENESS = "fineness"
ANSWERS = tuple((name, word) for name, words in ATTRIBUTES.items() for word in words)
"""What the numbers of feature "answers" are of, in their order: logits of (attribute, word)."""


def load(loading: Loading) -> FeatureSpace:
    """The space, of the embedded judge or of one that was trained.

    Raises:
        FileNotFoundError: the folder is not there, or holds no judge.
        ValueError: it is of another kind, or damaged.
    """
    folder = embedded_judge() if loading.weights is None else Path(loading.weights)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"There is no judge of solids in {folder}. Give the folder that 'davae train-judge' left "
            f"(--weights {NAME}=runs/solids-judge/judge), or leave --weights out for the one of the package."
        )
    judge: SolidsJudge = SolidsJudge.from_pretrained(verify(folder)).eval().requires_grad_(False)
    if judge.words != ATTRIBUTES:
        raise ValueError(f"The judge in {folder} knows other words than solids has. Train it again.")
    side = judge.config.image_size
    return FeatureSpace(
        name=NAME,
        identity={
            "extractor": "judge of solids, means over its last map",
            "weights": weights_hash(judge),
            "preprocessing": f"PIL bicubic to {side} x {side} px whatever the shape (8 bit), -1 to 1",
            "quantisation": QUANTISATION,
        },
        network=judge,
        lengths={"pool": judge.config.widths[-1], "answers": len(ANSWERS), FINENESS: 1},
        prepare=partial(prepare, side=side),
        compute=partial(_compute, judge),
        about={"source": "the package" if loading.weights is None else str(folder)},
    )


def prepare(image: NDArray[np.uint8], side: int) -> Pixels:
    """uint8 [H, W, 3] -> float32 [3, side, side] in [-1, 1]; an image of that size stays as it is."""
    if image.shape[:2] != (side, side):
        image = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))
    return image.transpose(2, 0, 1).astype(np.float32) / np.float32(127.5) - 1


def _compute(judge: SolidsJudge, images: Tensor) -> dict[str, Tensor]:
    judgement = judge(images)
    answers = torch.cat([judgement.logits[name] for name in ATTRIBUTES], dim=1)
    return {"pool": judgement.features, "answers": answers, FINENESS: judgement.fineness[:, None]}
