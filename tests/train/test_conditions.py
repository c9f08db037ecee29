"""What a sample is conditioned on: one of its captions at a visit, a function of the visit alone."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from davae.data.prompt_cache import NULL, PromptCache, PromptManifest, PromptSet, write_prompts
from davae.train.conditions import Prompts

SEVERAL = {"a": ("1", "2", "3"), "b": ("4",), "c": ()}


def cached(folder: Path, captions: Mapping[str, tuple[str, ...]]) -> PromptCache:
    prompts = PromptSet.of(captions)
    tensors = {"prompt_embeds": ("float32", (1,))}
    manifest = PromptManifest("encoders", 77, "float32", prompts.fingerprint, tensors)

    def encode(first: int, count: int) -> Mapping[str, Tensor]:
        return {"prompt_embeds": torch.tensor([[float(p or 0)] for p in prompts.prompts[first : first + count]])}

    return PromptCache(write_prompts(folder, manifest, prompts, 4, encode))


def drawn(conditions: Prompts, indices: list[int], positions: list[int]) -> list[float]:
    return conditions.batch(indices, positions)["prompt_embeds"][:, 0].tolist()


def test_every_caption_is_drawn_about_as_often_and_by_the_visit_alone(tmp_path: Path) -> None:
    conditions = Prompts(cached(tmp_path, SEVERAL), ["a", "b", "c"], dropout=0.0, seed=3)
    visits = list(range(600))
    whole = drawn(conditions, [0] * 600, visits)
    assert all(150 < count < 250 for count in Counter(whole).values())
    assert set(whole) == {1, 2, 3}
    assert drawn(conditions, [1, 0, 2, 0], [9, 77, 5, 431]) == [4, whole[77], 0, whole[431]]
    other = Prompts(conditions.cache, ["a"], dropout=0.0, seed=4)
    assert drawn(other, [0] * 600, visits) != whole


def test_dropped_visits_are_those_of_a_set_with_one_caption(tmp_path: Path) -> None:
    one = {name: captions[:1] for name, captions in SEVERAL.items()}
    few, many = (
        drawn(Prompts(cached(tmp_path / str(number), captions), ["a"], 0.3, seed=3), [0] * 200, list(range(200)))
        for number, captions in enumerate((one, SEVERAL))
    )
    assert [value == 0 for value in few] == [value == 0 for value in many]
    assert 30 < few.count(0) < 90
    assert NULL not in SEVERAL
