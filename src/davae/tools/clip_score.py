"""`davae evaluate --prompts FILE --images FOLDER`: the CLIP score of images and the captions they are of."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from davae.core.observer import Observer, Silent
from davae.data.captioned_images import CaptionedImage, captioned_images
from davae.data.decode import UnusableImage, decode_image
from davae.evaluate.clip_score import CLIP_PROTOCOLS, mean_score, score_each
from davae.evaluate.hardware import hardware
from davae.evaluate.results import Measurement, Results
from davae.models.clip import Clip
from davae.report.page import write_report
from davae.run.accelerator import PATIENCE
from davae.run.paths import refuse_claimed


def score_captions(
    images: Path,
    prompts: Path | None = None,
    metrics: Sequence[str] = ("clip-score",),
    *,
    clip: str | None = None,
    allow_download: bool = False,
    kind: str = "",
    out: Path | None = None,
    seed: int = 0,
    observer: Observer | None = None,
) -> Results:
    """Measure how well images and captions agree.

    Args:
        images: folder or tar shards of them.
        prompts: their captions; None takes what the folder says. See `captioned_images`.
        metrics: names of `CLIP_PROTOCOLS`.
        clip: the model, a folder or a name on the hub, which is fetched; None takes that of the protocol where the
            hub's cache has it.
        allow_download: whether that one may be fetched too.
        kind: "baseline" or "preview" takes what `davae generate` drew beside each image; empty takes the images.
        out: folder for results.json and report.html, not that of a run; None writes nothing.
        seed: of the intervals.
        observer: who watches.

    Raises:
        FileNotFoundError: a folder, a file or the model is not there.
        ValueError: a metric is unknown, or images and captions do not match; the text names the first that does not.
    """
    if unknown := [name for name in metrics if name not in CLIP_PROTOCOLS]:
        raise ValueError(
            f"Images and captions are not compared by {unknown[0]!r}; allowed are {', '.join(CLIP_PROTOCOLS)}."
        )
    if out is not None:
        refuse_claimed(out, "the score")
    found = captioned_images(images, prompts, kind)
    captions = {image.name: image.caption for image in found}
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    observer = (observer or Silent()) if state.is_main_process else Silent()
    mine = found[state.process_index :: state.num_processes]
    name = f"{images.resolve().name}{kind and f', {kind}'}"
    measurements: list[Measurement] = []
    for protocol in (CLIP_PROTOCOLS[name] for name in metrics):
        model = Clip.from_pretrained(clip or protocol.model, allow_download or clip is not None, state.device)
        scores = score_each(_decoded(mine), {i.name: i.caption for i in mine}, model, protocol, observer=observer)
        everyone = dict(gather_object(list(scores.items())))
        score = mean_score(everyone, captions, model, protocol, seed=seed)
        for column, value in {protocol.title: score.value, "95% from": score.low, "95% to": score.high}.items():
            measurements.append(Measurement(protocol.title, name, column, value, protocol=score.protocol))
    results = Results(
        run={
            "name": f"Captions of {name}",
            "summary": f"{len(found)} images and the captions that they are of.",
            "hardware": hardware(),
        },
        measurements=measurements,
    )
    if out is not None and state.is_main_process:
        results.save(out / "results.json")
        write_report(out)
    return results


def _decoded(images: Sequence[CaptionedImage]) -> Iterator[tuple[str, Tensor]]:
    for image in images:
        try:
            picture = decode_image(image.read(), image.name)
        except UnusableImage as error:
            raise ValueError(f"Cannot score {image.name}: {error.reason}. Draw it again.") from error
        yield image.name, torch.from_numpy(np.array(picture)).permute(2, 0, 1)
