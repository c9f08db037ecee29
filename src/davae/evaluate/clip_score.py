"""CLIP score: how well images and their captions agree.

Two numbers go by this name. `CLIP_SCORE` is that of the SANA and DC-Gen family of papers, 100 cosines of a ViT-L/14;
`HESSEL` is that of Hessel et al. (2021), with a prefix, a ViT-B/32 and a clamp. They cannot be compared.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from davae.core.observer import Observer, Silent
from davae.evaluate.bootstrap import LEVEL, RESAMPLES, interval, resampled_means
from davae.models.clip import Clip


@dataclass(frozen=True)
class ClipProtocol:
    """A score that goes by this name.

    Args:
        name: of the metric.
        title: of its column.
        model: on the hub.
        prefix: of every caption.
        factor: of the cosine; None takes the model's own logit scale, 100 for those of OpenAI.
        clamp: whether a negative cosine counts as 0, image by image.
    """

    name: str
    title: str
    model: str
    prefix: str = ""
    factor: float | None = None
    clamp: bool = False

    def scores(self, images: Tensor, texts: Tensor, logit_scale: float) -> Tensor:
        """Embeddings [N, D] of images and of their captions -> float64 [N]."""
        cosines = F.cosine_similarity(images.double(), texts.double(), dim=1)
        return (logit_scale if self.factor is None else self.factor) * (
            cosines.clamp(min=0) if self.clamp else cosines
        )


CLIP_SCORE: Final = ClipProtocol("clip-score", "CLIP score", "openai/clip-vit-large-patch14")
HESSEL: Final = ClipProtocol(
    "clip-score-hessel", "CLIPScore (Hessel)", "openai/clip-vit-base-patch32", "A photo depicts ", 2.5, clamp=True
)
CLIP_PROTOCOLS: Final = {protocol.name: protocol for protocol in (CLIP_SCORE, HESSEL)}
"""By the name of the metric."""


@dataclass(frozen=True)
class ClipScore:
    """A mean over images between the ends of its 95% interval, and how it came about."""

    value: float
    low: float
    high: float
    images: int
    protocol: dict[str, Any]


def clip_score(
    images: Iterable[tuple[str, Tensor]],
    captions: Mapping[str, str],
    clip: Clip,
    protocol: ClipProtocol = CLIP_SCORE,
    *,
    batch: int = 32,
    seed: int = 0,
    observer: Observer | None = None,
) -> ClipScore:
    """The CLIP score of images, in one call: `score_each`, then `mean_score`."""
    scores = score_each(images, captions, clip, protocol, batch=batch, observer=observer)
    return mean_score(scores, captions, clip, protocol, seed=seed)


def score_each(
    images: Iterable[tuple[str, Tensor]],
    captions: Mapping[str, str],
    clip: Clip,
    protocol: ClipProtocol = CLIP_SCORE,
    *,
    batch: int = 32,
    observer: Observer | None = None,
) -> dict[str, float]:
    """Scores of images, by id.

    Args:
        images: (id, uint8 [3, H, W]), of any sizes; drawn from one at a time.
        captions: id -> caption, of these images and of any others.
        clip: the model.
        protocol: which score.
        batch: images at once; moves nothing but the last digits.
        observer: who watches.

    Raises:
        ValueError: an image has no caption, or an embedding is not finite.
    """
    observer = observer or Silent()
    scores: dict[str, float] = {}
    observer.begin(protocol.name, len(captions))
    rest = iter(images)
    while part := dict(islice(rest, batch)):
        scores |= _scores(part, captions, clip, protocol)
        observer.advance(len(scores))
    observer.end()
    return scores


def mean_score(
    scores: Mapping[str, float],
    captions: Mapping[str, str],
    clip: Clip,
    protocol: ClipProtocol = CLIP_SCORE,
    *,
    seed: int = 0,
) -> ClipScore:
    """The score of a set from those of its images.

    Args:
        scores: of the images, by id.
        captions: id -> caption, of the same ids.
        clip: the model that scored them.
        protocol: which score.
        seed: of the interval, which resamples images.

    Raises:
        ValueError: a caption has no image, or there is none.
    """
    if absent := [name for name in captions if name not in scores]:
        raise ValueError(f"{len(absent)} captions have no image, that of {absent[0]} the first. Draw the images.")
    if not scores:
        raise ValueError("A CLIP score needs images; got none. Draw them first.")
    values = np.array([scores[name] for name in captions])  # in this order, whatever came first
    low, high = interval(resampled_means(values, np.ones(len(values)), seed, protocol.name))
    cut = sum(clip.is_cut(protocol.prefix + caption) for caption in captions.values())
    described = {
        **clip.identity,
        "score": _described(protocol, clip),
        "images": len(values),
        "captions cut": cut,
        "interval": f"{LEVEL:.0%}, bootstrap over images, {RESAMPLES} resamples, seed {seed}",
    }
    return ClipScore(float(values.mean()), low, high, len(values), described)


def _scores(
    images: Mapping[str, Tensor], captions: Mapping[str, str], clip: Clip, protocol: ClipProtocol
) -> Iterator[tuple[str, float]]:
    if absent := [name for name in images if name not in captions]:
        raise ValueError(f"Image {absent[0]} has no caption. Add it, or take the image away.")
    texts = clip.texts([protocol.prefix + captions[name] for name in images])
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images.values()]
    scores = protocol.scores(clip.images(pictures), texts, clip.logit_scale)
    if not bool(torch.isfinite(scores).all()):
        name = list(images)[int(torch.isfinite(scores).logical_not().nonzero()[0])]
        raise ValueError(
            f"The CLIP score of {name} is not finite: its embeddings are not. Check the model's weights."
        )
    return zip(images, scores.tolist(), strict=True)


def _described(protocol: ClipProtocol, clip: Clip) -> str:
    factor = clip.logit_scale if protocol.factor is None else protocol.factor
    clamped = "max(cosine, 0)" if protocol.clamp else "cosine"
    before = f", captions after '{protocol.prefix.strip()}'" if protocol.prefix else ""
    return f"mean of {factor:g} x {clamped}{before}"
