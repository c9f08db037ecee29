"""The training loop on a linear model, where every number can be worked out by hand."""

import copy
import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from davae.core.observer import Silent
from davae.train.checkpoint import CheckpointError, CheckpointStore
from davae.train.ema import advice_on_average
from davae.train.interrupt import Interrupted
from davae.train.journal import Journal
from davae.train.loop import train
from davae.train.settings import LoopConfig, OptimConfig
from davae.train.task import Learner, Loss

SLOPE = torch.tensor([[1.0], [-2.0], [0.5], [3.0]])


def line(ema_decay: float | None = None, **optim: Any) -> Any:
    """The task of fitting a line: one learner, "line"."""
    torch.manual_seed(0)

    def loss(learner: str, network: nn.Module, batch: dict[str, Tensor], step: int) -> Loss:
        prediction = network(batch["x"])
        return Loss((prediction.float() - batch["y"]).square().mean(), {"x": batch["x"].mean()})

    learner = Learner(nn.Linear(4, 1), OptimConfig(**{"lr": 0.05} | optim), ema_decay)
    return SimpleNamespace(learners={"line": learner}, state={}, is_active=lambda *_: True, loss=loss)


def samples(step: int, size: int = 12) -> dict[str, Tensor]:
    x = torch.randn(size, 4, generator=torch.Generator().manual_seed(step))
    return {"x": x, "y": x @ SLOPE + 0.7}


def batches(accumulation: int = 1, poison: int | None = None) -> Callable[[int], Iterator[list[dict[str, Tensor]]]]:
    """An endless feed; step `poison` holds one NaN in its last micro-batch."""

    def endless(step: int) -> Iterator[list[dict[str, Tensor]]]:
        while True:
            batch = samples(step)
            if step == poison:
                batch["y"][-1] = torch.nan
            chunks = zip(*(tensor.chunk(accumulation) for tensor in batch.values()), strict=True)
            yield [dict(zip(batch, chunk, strict=True)) for chunk in chunks]
            step += 1

    return endless


def fit(task: Any, steps: int = 8, feed: Any = None, **settings: Any) -> Any:
    """Train on the CPU; returns the average."""
    parts = {name: settings.pop(name) for name in ("store", "journal", "hooks", "observer") if name in settings}
    config = LoopConfig(**{"steps": steps, "batch_size": 12, "precision": "fp32", "log_every": 1} | settings)
    return train(task, feed or batches(config.accumulation), config, Accelerator(cpu=True), **parts)["line"]


def weights(task: Any) -> Tensor:
    network = task.learners["line"].network
    return torch.cat([network.weight.detach().flatten(), network.bias.detach()])


def rows(path: Path) -> list[dict[str, float]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def test_training_is_the_textbook_loop(tmp_path: Path) -> None:
    task = line(weight_decay=0.1, max_grad_norm=0.5, betas=(0.8, 0.9))
    network = copy.deepcopy(task.learners["line"].network)
    fit(task, journal=Journal(tmp_path / "stats.jsonl", "line"))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.05, weight_decay=0.1, betas=(0.8, 0.9))
    for step, row in zip(range(8), rows(tmp_path / "stats.jsonl"), strict=True):
        batch = samples(step)
        loss = (network(batch["x"]) - batch["y"]).square().mean()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        assert row["loss_line"] == pytest.approx(loss.item(), rel=1e-6)
        assert row["grad_norm_line"] == pytest.approx(norm.item(), rel=1e-6)  # before clipping
    torch.testing.assert_close(weights(task)[:4], network.weight.detach()[0], rtol=1e-6, atol=1e-7)


def test_accumulation_is_the_large_batch(tmp_path: Path) -> None:
    large, small = line(max_grad_norm=1.0), line(max_grad_norm=1.0)
    fit(large, journal=Journal(tmp_path / "large.jsonl", "line"))
    fit(small, accumulation=4, journal=Journal(tmp_path / "small.jsonl", "line"))
    torch.testing.assert_close(weights(small), weights(large), rtol=1e-5, atol=1e-6)
    for row, other in zip(rows(tmp_path / "small.jsonl"), rows(tmp_path / "large.jsonl"), strict=True):
        for name in ("loss_line", "x", "grad_norm_line"):
            assert row[name] == pytest.approx(other[name], rel=1e-5)


def rates(steps: int, **optim: Any) -> list[float]:
    """Learning rates by step. A constant gradient of 1 moves an AdamW weight by exactly the rate."""
    task = line(lr=1.0, **optim)
    task.loss = lambda learner, network, batch, step: Loss(network.bias.sum() + 0 * network.weight.sum())
    places = [float(weights(task)[4])]
    fit(task, steps, hooks=[(1, lambda done: places.append(float(weights(task)[4])))])
    return [before - after for before, after in zip(places, places[1:], strict=False)]


def test_the_rate_warms_up_and_falls_to_its_final_factor() -> None:
    got = rates(43, warmup_steps=3, final_lr_factor=0.2)
    assert got[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0], rel=1e-4)
    assert got[23] == pytest.approx(0.6, rel=1e-4)  # half way down the cosine
    assert all(after < before for before, after in zip(got[3:], got[4:], strict=False))
    assert 0.2 < got[-1] < 0.21


def test_the_rate_is_constant_by_default() -> None:
    assert rates(5) == pytest.approx([1.0] * 5, rel=1e-4)


def test_frozen_weights_are_untouched(tmp_path: Path) -> None:
    task = line(ema_decay=0.5, weight_decay=0.1)
    task.learners["line"].network.weight.requires_grad_(False)
    before = weights(task)
    store = CheckpointStore(tmp_path, {})
    average = fit(task, store=store)
    assert torch.equal(weights(task)[:4], before[:4])
    assert weights(task)[4] != before[4]
    assert list(average.shadow) == ["bias"]
    groups = store.latest().groups
    assert list(groups["line"]) == ["bias"]
    assert {key.split(".")[0] for key in groups["line.optimizer"]} == {"0"}


def test_nothing_to_train_is_an_error() -> None:
    task = line()
    task.learners["line"].network.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        fit(task)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_nan_stops_before_the_step_and_names_it(tmp_path: Path, accumulation: int) -> None:
    poisoned, sound = line(ema_decay=0.5), line(ema_decay=0.5)
    store = CheckpointStore(tmp_path, {})
    feed = batches(accumulation, poison=5)
    with pytest.raises(FloatingPointError, match="step 5: loss_line, grad_norm_line not finite"):
        fit(poisoned, feed=feed, accumulation=accumulation, store=store, checkpoint_every=2)
    fit(sound, steps=5, accumulation=accumulation)
    assert torch.equal(weights(poisoned), weights(sound))
    assert store.latest().step == 4


@pytest.mark.parametrize("part", ["weight", "average", "state"])
def test_what_is_not_finite_is_not_saved(tmp_path: Path, part: str) -> None:
    task, store = line(ema_decay=0.5), CheckpointStore(tmp_path, {})
    network = task.learners["line"].network

    def spoil(done: int) -> None:
        if part == "weight":
            network.weight.data[0, 2] = torch.nan
        elif part == "average":
            task.learners["line"].average.shadow["weight"][0, 2] = torch.inf
        else:
            task.state["balance"] = torch.tensor(torch.nan)

    if part == "weight":  # which the loss does not see
        task.loss = lambda learner, network, batch, step: Loss((network.bias - 1).square().sum())
        network.weight.grad = torch.zeros_like(network.weight)
    with pytest.raises(FloatingPointError, match=r"not finite.*saved before is intact.*--overwrite"):
        fit(task, store=store, checkpoint_every=2, hooks=[(4, spoil)])
    assert store.latest().step == 4


def test_an_infinite_gradient_of_a_finite_loss_stops_too() -> None:
    task = line()
    network = task.learners["line"].network
    nn.init.zeros_(network.bias)
    task.loss = lambda learner, network, batch, step: Loss(network.bias.sqrt().sum() + 0 * network.weight.sum())
    with pytest.raises(FloatingPointError, match="step 0: grad_norm_line not finite"):
        fit(task)
    assert weights(task)[4] == 0


def test_an_inactive_learner_stands_still() -> None:
    task = line()
    late = nn.Linear(4, 1)
    task.learners["late"] = Learner(late, OptimConfig(lr=0.1, weight_decay=0.5))
    task.is_active = lambda learner, step: learner == "line" or step >= 3
    seen = []
    fit(task, steps=5, hooks=[(1, lambda done: seen.append(late.weight.detach().clone()))])
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[2], seen[3])


@pytest.mark.parametrize("accumulation", [1, 3])
def test_learners_hand_on_to_those_after_them_within_a_micro_batch(accumulation: int) -> None:
    task, seen = line(), []
    task.learners = {name: Learner(nn.Linear(4, 1), OptimConfig()) for name in ("first", "second", "line")}
    task.is_active = lambda learner, step: learner != "second" or step == 1

    def loss(learner: str, network: nn.Module, batch: dict[str, Tensor], step: int) -> Loss:
        seen.append((step, learner, {name: value for name, value in batch.items() if name not in ("x", "y")}))
        mean = batch["x"].mean()
        return Loss(network(batch["x"]).square().mean(), outputs={f"of {learner}": mean, "latest": mean + len(seen)})

    task.loss = loss
    fit(task, feed=batches(accumulation), steps=2, accumulation=accumulation)
    means = [chunk.mean() for step in (0, 1) for chunk in samples(step)["x"].chunk(accumulation)]
    for number, (step, learner, given) in enumerate(seen):
        names = {"first": [], "second": ["first"], "line": ["first", "second"] if step else ["first"]}[learner]
        assert given.keys() == ({f"of {name}" for name in names} | {"latest"} if names else set())
        mean = means[number // 2] if step == 0 else means[accumulation + (number - 2 * accumulation) // 3]
        assert all(torch.equal(given[f"of {name}"], mean) for name in names)
        assert not names or torch.equal(given["latest"], mean + number)  # the last one's replaces those before
    assert len(seen) == (2 + 3) * accumulation


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_is_that_of_the_network_and_never_of_its_weights(precision: str, dtype: torch.dtype) -> None:
    task, seen = line(), set()
    task.learners["line"].network.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    fit(task, precision=precision)
    assert seen == {dtype}
    assert weights(task).dtype == torch.float32


def test_rows_are_means_since_the_last_row(tmp_path: Path) -> None:
    fit(line(), steps=7, journal=Journal(tmp_path / "each.jsonl", "line"))
    fit(line(), steps=7, log_every=3, journal=Journal(tmp_path / "third.jsonl", "line"))
    each = [row["loss_line"] for row in rows(tmp_path / "each.jsonl")]
    third = rows(tmp_path / "third.jsonl")
    assert [row["step"] for row in third] == [3, 6, 7]
    assert [row["stage"] for row in third] == ["line"] * 3
    want = [math.fsum(each[:3]) / 3, math.fsum(each[3:6]) / 3, each[6]]
    assert [row["loss_line"] for row in third] == pytest.approx(want, rel=1e-5)
    assert all(row["images_per_second"] > 0 for row in third)


def test_hooks_run_after_the_steps_they_divide() -> None:
    seen: list[int] = []
    fit(line(), steps=7, hooks=[(3, seen.append)])
    assert seen == [3, 6]


def test_checkpoints_are_regular_and_the_last_step_has_one(tmp_path: Path) -> None:
    fit(line(), steps=7, store=CheckpointStore(tmp_path, {}, keep=9), checkpoint_every=3)
    assert sorted(int(path.name[-8:]) for path in tmp_path.iterdir()) == [3, 6, 7]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_resumed_run_is_the_uninterrupted_one(tmp_path: Path, number: int) -> None:
    settings: dict[str, Any] = {"warmup_steps": 2, "final_lr_factor": 0.1, "ema_decay": 0.7}
    straight, broken, resumed = line(**settings), line(**settings), line(**settings)
    want = fit(straight, journal=Journal(tmp_path / "want.jsonl", "line"))
    store, journal = CheckpointStore(tmp_path / "checkpoints", {}), Journal(tmp_path / "got.jsonl", "line")
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    stop = (1, lambda done: os.kill(os.getpid(), number) if done == 4 else None)  # heeded after the next step
    with pytest.raises(Interrupted, match="saved at step 5") as interrupted:
        fit(broken, store=store, journal=journal, hooks=[stop])
    assert (interrupted.value.signal_number, interrupted.value.step) == (number, 5)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    assert store.latest().step == 5

    for step in (6, 7):  # rows that were written after the last checkpoint
        journal.log(step, {"loss_line": 0.0})
    nn.init.zeros_(resumed.learners["line"].network.weight)  # whatever it starts with is replaced
    got = fit(resumed, store=store, journal=journal)
    assert torch.equal(weights(resumed), weights(straight))
    assert all(map(torch.equal, got.shadow.values(), want.shadow.values()))
    losses = [
        [(row["step"], row["loss_line"]) for row in rows(tmp_path / name)] for name in ("got.jsonl", "want.jsonl")
    ]
    assert losses[0] == losses[1]


def test_a_signal_in_the_hook_of_the_last_step_is_heeded(tmp_path: Path) -> None:
    store, stop = CheckpointStore(tmp_path, {}), (8, lambda done: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match="saved at step 8"):
        fit(line(), store=store, hooks=[stop])
    assert store.latest().step == 8


@pytest.mark.parametrize(("failing", "signalled"), [(4, False), (5, True)], ids=["due", "signal"])
def test_a_hook_that_fails_takes_no_saved_step_with_it(tmp_path: Path, failing: int, signalled: bool) -> None:
    task, store = line(), CheckpointStore(tmp_path, {})
    plain = task.loss

    def loss(learner: str, network: nn.Module, batch: dict[str, Tensor], step: int) -> Loss:
        if signalled and step == failing - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(learner, network, batch, step)

    def fail(done: int) -> None:
        raise OSError("no space for a picture")

    task.loss = loss
    with pytest.raises(OSError, match="no space for a picture"):
        fit(task, store=store, checkpoint_every=4, hooks=[(failing, fail)])
    assert store.latest().step == failing
    assert torch.equal(store.latest().groups["line"]["weight"][0], weights(task)[:4])


class Normalised(nn.Module):
    """A line behind running statistics, with a table as position embeddings are."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(4), nn.Linear(4, 1)
        self.register_buffer("table", torch.arange(1000.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(x)) + self.table[1]


def normalised(**settings: Any) -> Any:
    task = line()
    torch.manual_seed(0)
    task.learners["line"] = Learner(Normalised(), OptimConfig(lr=0.05), **settings)
    return task


@pytest.mark.parametrize("version", ["now", "every buffer", "a statistic less", "a stranger"])
def test_running_statistics_are_saved_and_tables_are_not(tmp_path: Path, version: str) -> None:
    store, straight, broken, resumed = CheckpointStore(tmp_path, {}), *(normalised(ema_decay=0.5) for _ in range(3))
    fit(straight)
    fit(broken, steps=5, store=store)
    groups = store.latest().groups
    statistics = {f"norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert groups["line"].keys() == {"norm.weight", "norm.bias", "out.weight", "out.bias"} | statistics
    if version == "every buffer":  # as earlier versions saved it
        groups["line"]["table"] = torch.arange(1000.0)
    elif version == "a statistic less":
        del groups["line"]["norm.running_var"]
    elif version == "a stranger":
        groups["line"]["shape"] = torch.ones(1)
    store.save(5, groups)
    if version in ("a statistic less", "a stranger"):
        with pytest.raises(CheckpointError, match=r"other weights for the line: \['(norm.running_var|shape)'\]"):
            fit(resumed, store=store)
        return
    fit(resumed, store=store)
    want, got = (task.learners["line"].network.state_dict() for task in (straight, resumed))
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())


def remembering(**settings: Any) -> Any:
    """A task whose loss depends on the running mean of its losses."""
    task = line(**settings)
    plain = task.loss

    def loss(*arguments: Any) -> Loss:
        total = plain(*arguments).total
        mean = 0.5 * task.state.get("mean", total.new_zeros(())) + 0.5 * total.detach()
        task.state["mean"] = mean
        return Loss(mean * total)

    task.loss = loss
    return task


def test_what_a_task_remembers_outlives_a_kill(tmp_path: Path) -> None:
    straight, broken, resumed = remembering(), remembering(), remembering()
    fit(straight)
    seen: list[Tensor] = []

    def watch(done: int) -> None:
        seen.append(broken.state["mean"])
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(broken, store=CheckpointStore(tmp_path, {}), checkpoint_every=2, hooks=[(1, watch)])
    stored = CheckpointStore(tmp_path, {}).latest()
    assert stored.step == 4
    assert stored.groups["task"].keys() == {"mean"}
    assert torch.equal(stored.groups["task"]["mean"], seen[3])
    held = resumed.state
    fit(resumed, store=CheckpointStore(tmp_path, {}))
    assert resumed.state is held  # filled, not replaced: others hold on to it
    assert torch.equal(held["mean"], straight.state["mean"])
    assert torch.equal(weights(resumed), weights(straight))


def test_a_task_that_remembers_nothing_leaves_nothing(tmp_path: Path) -> None:
    fit(line(), store=CheckpointStore(tmp_path, {}))
    assert CheckpointStore(tmp_path, {}).latest().groups.keys() == {"line", "line.optimizer"}
    task = remembering()
    fit(task, steps=9, store=CheckpointStore(tmp_path, {}))  # a checkpoint without a state is no obstacle
    assert "mean" in task.state


def test_a_second_ctrl_c_does_not_wait() -> None:
    def twice(done: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(line(), hooks=[(2, twice)])


def test_a_finished_training_is_only_read(tmp_path: Path) -> None:
    first, second = line(ema_decay=0.5), line(ema_decay=0.5)
    want = fit(first, store=CheckpointStore(tmp_path, {}))
    got = fit(second, feed=batches(poison=0), store=CheckpointStore(tmp_path, {}))
    assert torch.equal(weights(second), weights(first))
    assert torch.equal(got.shadow["weight"], want.shadow["weight"])


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    fit(line(), store=CheckpointStore(tmp_path, {}))
    task = line()
    task.learners["line"].network = nn.Sequential(task.learners["line"].network)
    with pytest.raises(CheckpointError, match="other weights for the line: .*0.weight"):
        fit(task, store=CheckpointStore(tmp_path, {}))


class Listener(Silent):
    """Keeps what it is told, in order."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def say(self, message: str) -> None:
        self.heard.append(message)

    def begin(self, stage: str, total: int, done: int = 0) -> None:
        self.heard.append(f"from step {done}")


def test_an_average_that_the_run_is_too_short_for_is_told_before_training(tmp_path: Path) -> None:
    listener, store = Listener(), CheckpointStore(tmp_path, {})
    stop = (1, lambda done: os.kill(os.getpid(), signal.SIGTERM) if done == 2 else None)
    with pytest.raises(Interrupted):
        fit(line(ema_decay=0.99), store=store, hooks=[stop], observer=listener)
    fit(line(ema_decay=0.99), store=store, observer=listener)
    advice, start, again, resumed = listener.heard
    assert (start, resumed, again) == ("from step 0", "from step 3", advice)  # a fact about the whole run
    assert advice == "line: " + str(advice_on_average(0.99, 8))


@pytest.mark.parametrize("decay", [None, 0.5])
def test_an_average_that_forgets_its_start_is_nothing_to_talk_about(decay: float | None) -> None:
    listener = Listener()
    fit(line(ema_decay=decay), observer=listener)
    assert listener.heard == ["from step 0"]


def test_the_ramp_counts(tmp_path: Path) -> None:
    task, listener = line(ema_decay=0.99), Listener()
    task.learners["line"].ema_ramp = True
    fit(task, observer=listener)
    assert listener.heard == ["from step 0"]


def test_only_the_main_process_talks() -> None:
    listener, accelerator = Listener(), Accelerator(cpu=True)
    config = LoopConfig(steps=2, batch_size=12, precision="fp32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Accelerator, "is_main_process", False)
        train(line(ema_decay=0.99), batches(), config, accelerator, observer=listener)
    assert listener.heard == ["from step 0"]


def test_a_checkpoint_has_the_groups_and_names_of_earlier_versions(tmp_path: Path) -> None:
    """To change them is to give up every run that is under way."""
    fit(remembering(ema_decay=0.5), store=CheckpointStore(tmp_path, {}))
    groups = CheckpointStore(tmp_path, {}).latest().groups
    moments = {f"{index}.{name}" for index in (0, 1) for name in ("step", "exp_avg", "exp_avg_sq")}
    assert {name: set(group) for name, group in groups.items()} == {
        "task": {"mean"},
        "line": {"weight", "bias"},
        "line.ema": {"weight", "bias"},
        "line.optimizer": moments,
    }
