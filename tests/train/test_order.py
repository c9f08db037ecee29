"""Which sample stands at a position: a function of the seed alone, whoever asks."""

import itertools

import pytest
import torch

from davae.train.feed import Share
from davae.train.order import BucketOrder, Order


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
        visits = seen[start : start + count]
        assert visits.max() - visits.min() <= 1, bucket  # epochs of its own
        assert abs(int(visits.max()) - batch * 1200 / 48) <= 3 * batch / count + 1
    first = BucketOrder(counts, 1, batch)
    visited = [index for index in first.indices(range(batch * 60)) if index < 30]
    assert all(sorted(visited[start : start + 30]) == list(range(30)) for start in range(0, len(visited) - 30, 30))


def test_the_order_of_buckets_does_not_depend_on_who_asked_before() -> None:
    forward = BucketOrder([7, 9], seed=0, batch_size=2).indices(range(6000))
    assert BucketOrder([7, 9], seed=0, batch_size=2).indices(range(5999, -1, -1)) == forward[::-1]
    assert BucketOrder([7, 9], seed=0, batch_size=2).indices([5000, 3]) == [forward[5000], forward[3]]
    assert BucketOrder([7, 9], seed=1, batch_size=2).indices(range(6000)) != forward


@pytest.mark.parametrize("arguments", [([], 0, 4), ([0, 0], 0, 4), ([3, -1], 0, 4), ([3], 0, 0)])
def test_an_order_of_nothing_is_refused(arguments: tuple) -> None:
    with pytest.raises(ValueError, match="No order of buckets"):
        BucketOrder(*arguments)
