"""Which sample a step sees: a function of seed and position, whoever asks and wherever a run begins."""

import itertools

import pytest
import torch
from torch import Tensor

from davae.data.solids import SolidsSource
from davae.train.feed import BucketOrder, ImageSet, Order, Share, feed


class Positions(torch.utils.data.Dataset):
    """A training set whose samples are their positions."""

    def __getitems__(self, positions: list[int]) -> dict[str, Tensor]:
        return {"position": torch.tensor(positions)}


def fed(share: Share, start: int = 0, stop: int = 5, workers: int = 0) -> list[list[list[int]]]:
    """Positions by step and micro-batch."""
    steps = feed(Positions(), share, start, stop, workers)
    return [[micro["position"].tolist() for micro in micros] for micros in steps]


def test_an_epoch_visits_every_sample_once() -> None:
    order = Order(10, seed=3)
    epochs = [order.indices(range(start, start + 10)) for start in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3  # another order each
    assert Order(10, seed=4).indices(range(10)) != epochs[0]


def test_the_order_does_not_depend_on_who_asked_before() -> None:
    order = Order(7, seed=0)
    forward = order.indices(range(70))
    assert Order(7, seed=0).indices(range(69, -1, -1)) == forward[::-1]
    assert Order(7, seed=0).indices([40]) == forward[40:41]
    assert order.indices([3, 66, 20, 3]) == [forward[3], forward[66], forward[20], forward[3]]


def test_a_batch_may_span_epochs() -> None:
    batch = Order(3, seed=0).indices(range(2, 10))
    assert sorted(batch[1:4]) == sorted(batch[4:7]) == [0, 1, 2]


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
        assert list(itertools.chain(*(one[step][0] for one in resumed))) == micro


def test_an_uneven_share_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size 10 for 2 processes x 3 accumulation steps. Use a multiple of 6"):
        Share(10, accumulation=3, num_processes=2)


def bucket_of(index: int, counts: list[int]) -> int:
    return next(bucket for bucket, end in enumerate(itertools.accumulate(counts)) if index < end)


def test_one_bucket_is_an_order() -> None:
    for counts in ([10], [10, 0]):
        order = BucketOrder(counts, seed=3, batch_size=4)
        assert order.indices(range(100)) == Order(10, seed=3).indices(range(100))
        assert order.indices([77, 2, 40]) == Order(10, seed=3).indices([77, 2, 40])


@pytest.mark.parametrize(("accumulation", "processes"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_a_step_has_one_size_whoever_shares_it(accumulation: int, processes: int) -> None:
    counts, want = [7, 0, 3, 20], BucketOrder([7, 0, 3, 20], seed=5, batch_size=8)
    shares = [Share(8, accumulation, processes, process) for process in range(processes)]
    orders = [BucketOrder(counts, seed=5, batch_size=8) for _ in shares]
    for step in (0, 1, 2, 3, 1500, 7, 40_000):
        micros = zip(*(share.positions(step) for share in shares), strict=True)
        got = [order.indices(part) for micro in micros for order, part in zip(orders, micro, strict=True)]
        whole = [index for part in got for index in part]
        assert len({bucket_of(index, counts) for index in whole}) == 1
        assert whole == want.indices(range(8 * step, 8 * step + 8))


def test_buckets_have_their_shares_of_any_stretch_of_steps() -> None:
    counts, steps = [500, 3, 0, 120, 1, 376], 4000
    order = BucketOrder(counts, seed=0, batch_size=10)
    buckets = torch.tensor([bucket_of(order.indices([10 * step])[0], counts) for step in range(steps)])
    for bucket, count in enumerate(counts):
        taken = (buckets == bucket).long()
        ahead = taken.cumsum(0) - torch.arange(1, steps + 1) * count / sum(counts)
        assert ahead.max() - ahead.min() < 5
        if count:
            visits = [-1, *taken.nonzero().flatten().tolist(), steps]
            waits = [later - earlier for earlier, later in itertools.pairwise(visits)]
            assert max(waits) < 2.1 * sum(counts) / count + 1
    assert not bool((buckets == 2).any())
    starts = [BucketOrder(counts, seed, 10).indices([0])[0] for seed in range(12)]
    assert len({bucket_of(index, counts) for index in starts}) > 1


def test_all_samples_are_seen_equally_often() -> None:
    counts, batch = [30, 6, 1, 11], 8  # three of them cannot fill a batch, or not a second one
    seen = torch.bincount(torch.tensor(BucketOrder(counts, 1, batch).indices(range(batch * 1200))), minlength=48)
    for bucket, (count, start) in enumerate(zip(counts, (0, 30, 36, 37), strict=True)):
        own = seen[start : start + count]
        assert own.max() - own.min() <= 1, bucket  # epochs of its own
        assert abs(int(own.max()) - batch * 1200 / 48) <= 3 * batch / count + 1
    first = BucketOrder(counts, 1, batch)
    own = [index for index in first.indices(range(batch * 60)) if index < 30]
    assert all(sorted(own[start : start + 30]) == list(range(30)) for start in range(0, len(own) - 30, 30))


def test_the_order_of_buckets_does_not_depend_on_who_asked_before() -> None:
    forward = BucketOrder([7, 9], seed=0, batch_size=2).indices(range(6000))
    assert BucketOrder([7, 9], seed=0, batch_size=2).indices(range(5999, -1, -1)) == forward[::-1]
    assert BucketOrder([7, 9], seed=0, batch_size=2).indices([5000, 3]) == [forward[5000], forward[3]]
    assert BucketOrder([7, 9], seed=1, batch_size=2).indices(range(6000)) != forward


@pytest.mark.parametrize("arguments", [([], 0, 4), ([0, 0], 0, 4), ([3, -1], 0, 4), ([3], 0, 0)])
def test_an_order_of_nothing_is_refused(arguments: tuple) -> None:
    with pytest.raises(ValueError, match="No order of buckets"):
        BucketOrder(*arguments)


def test_images_depend_on_their_position_alone() -> None:
    source = SolidsSource(6, seed=2)
    together = ImageSet(source, 16, seed=1).__getitems__(list(range(12)))
    assert together["image"].shape == (12, 3, 16, 16)
    assert together["image"].dtype == torch.uint8
    assert together["position"].tolist() == list(range(12))
    for position in (11, 0, 5):
        alone = ImageSet(source, 16, seed=1).__getitems__([position])
        assert torch.equal(alone["image"][0], together["image"][position])
    other = ImageSet(source, 16, seed=2).__getitems__(list(range(12)))
    assert not torch.equal(other["image"], together["image"])


def test_half_of_the_images_are_mirrored() -> None:
    source = SolidsSource(4, seed=0)
    flipping, still = ImageSet(source, 8, seed=0), ImageSet(source, 8, seed=0, flip=False)
    batch, plain = (one.__getitems__(list(range(200)))["image"] for one in (flipping, still))
    same = (batch == plain).flatten(1).all(dim=1)
    mirrored = (batch == plain.flip(-1)).flatten(1).all(dim=1)
    assert bool((same | mirrored).all())
    assert 70 < int(mirrored.sum()) < 130
    # A sample is not bound to one side: later epochs mirror it anew.
    indices = torch.tensor(flipping.order.indices(range(200)))
    assert 0 < int(mirrored[indices == 0].sum()) < int((indices == 0).sum())


class Places:
    """An `ImageSource` whose pixels say where they are: channels are row, column and number of the image."""

    def __len__(self) -> int:
        return 6

    def images(self, indices: list[int], size: int) -> Tensor:
        rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
        images = [torch.stack([rows, columns, torch.full_like(rows, index)]) for index in indices]
        return torch.stack(images).to(torch.uint8)


def test_crops_are_windows_of_the_larger_image() -> None:
    cropping = ImageSet(Places(), 16, seed=1, flip=False, crop_from=24)
    positions = list(range(300))
    batch = cropping.__getitems__(positions)["image"]
    whole = Places().images(cropping.order.indices(positions), 24)
    corners = batch[:, :2, 0, 0].tolist()
    for window, image, (top, left) in zip(batch, whole, corners, strict=True):
        assert torch.equal(window, image[:, top : top + 16, left : left + 16])
    tops, lefts = (sorted({corner[axis] for corner in corners}) for axis in (0, 1))
    assert tops == lefts == list(range(9))  # to the last row and column
    assert len({tuple(corner) for corner in corners}) > 60  # of 81: one does not follow from the other
    assert 3.5 < float(batch[:, 0, 0, 0].float().mean()) < 4.5
    # A sample is not bound to one window: later epochs cut anew.
    assert len({tuple(corner) for image, corner in zip(whole, corners, strict=True) if image[2, 0, 0] == 3}) > 20


def test_crops_depend_on_their_position_alone() -> None:
    def crops(positions: list[int], seed: int = 1) -> Tensor:
        return ImageSet(Places(), 8, seed, crop_from=24).__getitems__(positions)["image"]

    together = crops(list(range(40)))
    assert torch.equal(crops([31, 7, 7, 0]), together[[31, 7, 7, 0]])
    assert not torch.equal(crops(list(range(40)), seed=2), together)
    still = ImageSet(Places(), 8, 1, flip=False, crop_from=24).__getitems__(list(range(40)))["image"]
    mirrored = (together == still.flip(-1)).flatten(1).all(dim=1)
    assert bool((mirrored | (together == still).flatten(1).all(dim=1)).all())  # the window, perhaps mirrored
    assert 0 < int(mirrored.sum()) < 40


@pytest.mark.parametrize("crop_from", [None, 16])
def test_whole_images_are_not_cropped(crop_from: int | None) -> None:
    whole = ImageSet(Places(), 16, seed=0, flip=False, crop_from=crop_from)
    batch = whole.__getitems__(list(range(6)))["image"]
    assert torch.equal(batch, Places().images(whole.order.indices(range(6)), 16))


def test_a_window_larger_than_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="Cannot crop 32 px from images of crop_from 24 px; allowed 32 or more"):
        ImageSet(Places(), 32, seed=0, crop_from=24)


def test_workers_change_nothing() -> None:
    training_set, share = ImageSet(SolidsSource(6), 8, seed=0, crop_from=12), Share(4, accumulation=2)
    alone = list(feed(training_set, share, 1, 5))
    helped = list(feed(training_set, share, 1, 5, workers=2))
    assert len(alone) == len(helped) == 4
    for micro, other in zip(itertools.chain(*alone), itertools.chain(*helped), strict=True):
        assert torch.equal(micro["image"], other["image"])
        assert torch.equal(micro["position"], other["position"])
