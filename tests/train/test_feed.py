"""Which positions a step sees: a function of step and process, wherever a run begins and whoever prepares them."""

import itertools

import pytest
import torch
from torch import Tensor

from davae.data.solids import SolidsSource
from davae.train.batch import TrainingSet
from davae.train.feed import Share, feed
from davae.train.image_set import ImageSet


class Positions(TrainingSet):
    """A training set whose samples are their positions."""

    def __getitems__(self, positions: list[int]) -> dict[str, Tensor]:
        return {"position": torch.tensor(positions)}


def fed(share: Share, start: int = 0, stop: int = 5, workers: int = 0) -> list[list[list[int]]]:
    """Positions by step and micro-batch."""
    steps = feed(Positions(), share, start, stop, workers)
    return [[micro["position"].tolist() for micro in micros] for micros in steps]


@pytest.mark.parametrize(("accumulation", "processes"), [(1, 2), (2, 1), (2, 2), (3, 4)])
def test_shares_together_are_the_global_batch(accumulation: int, processes: int) -> None:
    shares = [fed(Share(24, accumulation, processes, process)) for process in range(processes)]
    for step, micros in enumerate(zip(*shares, strict=True)):
        flat = [position for micro in itertools.chain(*micros) for position in micro]
        assert len(flat) == 24
        assert sorted(flat) == list(range(24 * step, 24 * step + 24))
        assert {len(micro) for micro in itertools.chain(*micros)} == {24 // (accumulation * processes)}


def test_micro_batches_of_all_processes_are_the_micro_batches_of_one() -> None:
    alone = fed(Share(12, accumulation=3))
    shares = [fed(Share(12, 3, 2, process)) for process in range(2)]
    for step, micros in enumerate(alone):
        for number, micro in enumerate(micros):
            assert shares[0][step][number] + shares[1][step][number] == micro


def test_starting_late_is_skipping() -> None:
    share = Share(8, accumulation=2)
    assert fed(share, start=3) == fed(share)[3:]
    assert fed(share, start=5) == []


def test_another_process_count_goes_on_with_the_same_batches() -> None:
    together = fed(Share(8), 0, 6)
    resumed = [fed(Share(8, 1, 4, process), 3, 6) for process in range(4)]
    for step, (micro,) in enumerate(together[3:]):
        assert list(itertools.chain(*(batches[step][0] for batches in resumed))) == micro


def test_an_uneven_share_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size 10 for 2 processes x 3 accumulation steps. Use a multiple of 6"):
        Share(10, accumulation=3, num_processes=2)


def test_workers_change_nothing() -> None:
    training_set, share = ImageSet(SolidsSource(6), 8, seed=0, crop_from=12), Share(4, accumulation=2)
    alone = list(feed(training_set, share, 1, 5))
    helped = list(feed(training_set, share, 1, 5, workers=2))
    assert len(alone) == len(helped) == 4
    for micro, other in zip(itertools.chain(*alone), itertools.chain(*helped), strict=True):
        assert torch.equal(micro["image"], other["image"])
        assert torch.equal(micro["position"], other["position"])
