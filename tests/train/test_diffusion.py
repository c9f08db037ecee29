"""The diffusion objective: base and detail apart, the ramp, LoRA and its return to an ordinary model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

import davae
from conftest import assert_close
from davae.backbones.lora import merge_lora, prepare_lora
from davae.backbones.settings import LoraSettings
from davae.core.flow import from_sigma, interpolate, predicted_data, shift_time, sigma_shift
from davae.core.layout import LatentLayout
from davae.core.losses import velocity_cosine, weighted_mse
from davae.core.schedules import detail_weight, min_snr_weight
from davae.data.latent_cache import CacheManifest, LatentCache, write_cache
from davae.train.batch import Batch
from davae.train.checkpoint import CheckpointStore
from davae.train.conditions import Labels
from davae.train.diffusion import DiffusionTask
from davae.train.diffusion_settings import DiffusionConfig
from davae.train.feed import Share, feed
from davae.train.latent_set import LatentSet, draws
from davae.train.loop import train
from davae.train.settings import OptimConfig
from tiny_pair import tiny_transformer

LAYOUT = LatentLayout(4, 4)
HEADS = ("x_embedder.proj.", "final_layer.linear.")


def upgraded() -> davae.LightningDiT:
    torch.manual_seed(0)
    return davae.widen(tiny_transformer(), detail_channels=4)


def diffusion(model: nn.Module | None = None, layout: LatentLayout = LAYOUT, **settings: Any) -> DiffusionTask:
    defaults = {"steps": 4, "batch_size": 4, "precision": "fp32", "detail_warmup_steps": 10, "condition_dropout": 0.0}
    config = DiffusionConfig(**defaults | {"optim": OptimConfig(lr=1e-2)} | settings)
    return DiffusionTask(model or upgraded(), layout, config)


def batch(*positions: int, channels: int = 8) -> Batch:
    rows = [torch.randn(channels, 4, 4, generator=torch.Generator().manual_seed(place)) for place in positions]
    return {
        "latent": torch.stack(rows),
        "label": torch.tensor([place % 18 for place in positions]),
        "position": torch.tensor(positions),
        **draws(0, positions, (channels, 4, 4)),
    }


def loss(task: DiffusionTask, step: int = 0, given: Batch | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    network = task.learners["transformer"].network
    found = task.loss("transformer", network, given or batch(0, 1, 2, 3), step)
    return found.total, {name: value.item() for name, value in found.values.items()}


def cache(folder: Path, count: int = 10, flips: bool = True) -> LatentCache:
    """Random moments with a wide detail posterior; mirrored ones are the mirror images plus 100."""
    mean = torch.randn(count, 8, 4, 4)
    moments = {"mean": mean, "logvar": torch.zeros(count, 4, 4, 4)}
    if flips:
        moments |= {"mean_flip": mean.flip(-1) + 100, "logvar_flip": torch.zeros(count, 4, 4, 4)}
    manifest = CacheManifest(
        layout=LAYOUT,
        autoencoder="a",
        source="s",
        size=32,
        flips=flips,
        dtype="float32",
        shift=(0.5,) * 8,
        scale=(2.0,) * 8,
        ids=tuple(map(str, range(count))),
    )
    return LatentCache(write_cache(folder, manifest, [(0, count, lambda: moments)]))


def samples(latents: LatentCache, flips: bool = False, dropout: float = 0.0, batch_size: int = 4) -> LatentSet:
    return LatentSet(
        latents, Labels([index % 3 for index in range(len(latents))], 18, dropout, 0), 0, flips, batch_size
    )


def fit(task: DiffusionTask, latents: LatentCache, steps: int = 4, **parts: Any) -> None:
    training_set = samples(latents, batch_size=task.config.batch_size)
    train(
        task,
        lambda start: feed(training_set, Share(task.config.batch_size), start, steps),
        task.config,
        Accelerator(cpu=True),
        **parts,
    )


def test_base_and_detail_are_logged_apart_and_unweighted() -> None:
    fresh = davae.LightningDiT(sample_size=4, in_channels=8, hidden_size=16, num_layers=1, num_attention_heads=2)
    far = batch(0, 1, 2, 3)
    far["latent"][:, 4:] += 100  # an untrained transformer predicts 0: the loss is the target's size
    for step in (0, 5, 10):
        values = loss(diffusion(fresh), step, far)[1]
        assert 0.5 < values["loss_base"] < 5
        assert 9000 < values["loss_detail"] < 11000


@pytest.mark.parametrize(("step", "weight"), [(0, 0.0), (5, 0.5), (8, 0.9045085), (10, 1.0), (50, 1.0)])
def test_the_loss_weighs_the_detail_by_its_ramp(step: int, weight: float) -> None:
    total, values = loss(diffusion(cosine_weight=0.5), step)
    assert values["detail_weight"] == pytest.approx(weight, abs=1e-6)
    # Weights are scaled to mean 1, so that the loss keeps its size.
    want = (values["loss_base"] + weight * values["loss_detail"]) / (1 + weight) + 0.5 * values["cosine"]
    assert total.item() == pytest.approx(want, rel=1e-5)


def head_gradients(task: DiffusionTask, step: int) -> tuple[float, float]:
    """Largest gradient at the base rows and at the detail rows of the output head."""
    model = task.learners["transformer"].network
    model.zero_grad()
    loss(task, step)[0].backward()
    rows = model.final_layer.linear.weight.grad.abs()
    return float(rows[:4].max()), float(rows[4:].max())


def test_at_ramp_zero_the_detail_head_does_not_learn() -> None:
    base, detail = head_gradients(diffusion(), step=0)
    assert base > 1e-3
    assert detail == 0
    assert head_gradients(diffusion(), step=5)[1] > 1e-3
    assert head_gradients(diffusion(cosine_masked=False), step=0)[1] > 1e-3  # the authors' form
    assert head_gradients(diffusion(cosine_masked=False, cosine_weight=0.0), step=0)[1] == 0


def test_at_ramp_zero_the_loss_ignores_the_detail_target() -> None:
    # Zero columns in the embedder and no weight on the detail: the pretrained model's own loss.
    values, other = batch(0, 1, 2, 3), batch(0, 1, 2, 3)
    other["latent"][:, 4:] *= 30
    assert loss(diffusion(), 0, values)[0].item() == pytest.approx(loss(diffusion(), 0, other)[0].item(), rel=1e-5)


def test_a_plain_latent_has_no_detail_to_log() -> None:
    torch.manual_seed(0)
    task = diffusion(tiny_transformer(), LatentLayout(4, 0))
    total, values = loss(task, 0, batch(0, 1, 2, 3, channels=4))
    assert sorted(values) == ["cosine", "loss_base"]
    assert total.item() == pytest.approx(values["loss_base"] + values["cosine"], rel=1e-5)


def test_draws_belong_to_the_position_and_not_to_the_batch() -> None:
    task = diffusion()
    together = loss(task, 3, batch(0, 1, 2, 3))[0]
    halves = [loss(task, 3, batch(*half))[0] for half in ((0, 1), (2, 3))]
    assert together.item() == pytest.approx(sum(half.item() for half in halves) / 2, rel=1e-5)
    next_visit = batch(0, 1, 2, 3) | draws(0, (4, 5, 6, 7), (8, 4, 4))  # other noise and other times
    assert loss(task, 3, next_visit)[0].item() != pytest.approx(together.item(), rel=1e-3)


def test_labels_are_dropped_at_their_rate(tmp_path: Path) -> None:
    latents = cache(tmp_path)
    seen, whole = (samples(latents, dropout=rate).__getitems__(list(range(400)))["label"] for rate in (0.25, 0.0))
    dropped = seen == 18
    assert 70 <= int(dropped.sum()) <= 130
    assert torch.equal(seen[~dropped], whole[~dropped])


def test_a_transformer_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"takes 4 latent channels, the latents have 8 .*detail_channels=4"):
        diffusion(tiny_transformer())


def test_training_sees_normalised_latents_and_new_detail_at_every_visit(tmp_path: Path) -> None:
    latents = cache(tmp_path)
    training_set = samples(latents)
    visits = training_set.__getitems__(list(range(20)))
    order = training_set.order.indices(range(20))
    mean = (latents.moments(order)[0] - 0.5) * 2
    assert visits["label"].tolist() == [index % 3 for index in order]
    torch.testing.assert_close(visits["latent"][:, :4], mean[:, :4])
    noise = (visits["latent"] - mean)[:, 4:] / 2
    assert noise.std() == pytest.approx(1.0, abs=0.1)
    first, second = order.index(3, 0, 10), order.index(3, 10, 20)
    assert not torch.equal(noise[first], noise[second])
    again = samples(latents).__getitems__([second])
    assert torch.equal(again["latent"][0], visits["latent"][second])


def test_half_of_the_latents_are_mirrored_ones(tmp_path: Path) -> None:
    visits = samples(cache(tmp_path), flips=True).__getitems__(list(range(100)))
    mirrored = visits["latent"].mean(dim=(1, 2, 3)) > 50
    assert 30 < int(mirrored.sum()) < 70


def test_finetuning_lowers_the_detail_loss(tmp_path: Path) -> None:
    latents = cache(tmp_path)
    later = samples(latents).__getitems__(list(range(1000, 1064)))
    task = diffusion(steps=60, batch_size=8, detail_warmup_steps=5)
    before = loss(task, 10, later)[1]
    fit(task, latents, steps=60)
    after = loss(task, 10, later)[1]
    assert after["loss_detail"] < 0.7 * before["loss_detail"]
    assert after["loss_base"] < 1.1 * before["loss_base"]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_lora_trains_its_adapters_and_the_heads_alone(tmp_path: Path) -> None:
    model = prepare_lora(upgraded(), LoraSettings(rank=2), seed=0)
    before = weights(model)
    fit(diffusion(model), cache(tmp_path))
    moved = {name for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])}
    adapters = {name for name in before if "lora_" in name}
    heads = {name for name in before if name.startswith(HEADS)}
    assert len(heads) == 4
    assert len(adapters) == 2 * (2 * 5 + 1)  # two blocks of five targets, and the modulation of the last layer
    assert moved == adapters | heads


def test_lora_starts_as_the_model_itself() -> None:
    given = batch(0, 1)
    arguments = (given["latent"], torch.tensor([0.2, 0.7]), given["label"])
    adapted = prepare_lora(upgraded(), LoraSettings(rank=2), seed=0)
    assert torch.equal(adapted(*arguments).sample, upgraded()(*arguments).sample)
    same, other = (prepare_lora(upgraded(), LoraSettings(rank=2), seed=seed).state_dict() for seed in (0, 1))
    drawn = [name for name in same if "lora_A" in name]
    assert all(torch.equal(same[name], adapted.state_dict()[name]) for name in drawn)
    assert not any(torch.equal(same[name], other[name]) for name in drawn)


@torch.no_grad()
def test_merged_lora_is_an_ordinary_model(tmp_path: Path) -> None:
    plain = upgraded()
    model = prepare_lora(upgraded(), LoraSettings(rank=2, alpha=6.0), seed=0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.normal_(std=0.1)
    given = batch(0, 1)
    arguments = (given["latent"], torch.tensor([0.2, 0.7]), given["label"])
    want = model(*arguments).sample
    merged = merge_lora(model)
    assert {name: tensor.shape for name, tensor in merged.state_dict().items()} == {
        name: tensor.shape for name, tensor in plain.state_dict().items()
    }
    assert {type(module) for module in merged.modules()} == {type(module) for module in plain.modules()}
    assert (want - plain(*arguments).sample).abs().max() > 1e-3
    torch.testing.assert_close(merged(*arguments).sample, want, rtol=1e-4, atol=1e-5)
    merged.save_pretrained(tmp_path)
    torch.testing.assert_close(
        davae.LightningDiT.from_pretrained(tmp_path)(*arguments).sample, want, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("lag", [0.0, 0.3])
def test_a_killed_lora_training_goes_on_bit_for_bit(lag: float, tmp_path: Path) -> None:
    latents = cache(tmp_path / "latents")
    straight, broken, resumed = (
        diffusion(prepare_lora(upgraded(), LoraSettings(rank=2), seed=0), checkpoint_every=2, detail_lag=lag)
        for _ in range(3)
    )
    fit(straight, latents)

    def die(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(broken, latents, store=CheckpointStore(tmp_path / "store", {}), hooks=[(3, die)])
    fit(resumed, latents, store=CheckpointStore(tmp_path / "store", {}))
    want, got = (weights(task.learners["transformer"].network) for task in (straight, resumed))
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())


def test_the_text_to_image_loss_is_the_references(golden) -> None:
    tensors = golden("sd3_train_loss")
    # The reference keeps the detail in front.
    data, noise, output = (
        torch.cat(tensors[f"in.{name}"].chunk(2, dim=1)[::-1], dim=1) for name in ("latents", "noise", "model_output")
    )
    time = from_sigma(tensors["out.sigma"])
    noisy = interpolate(data, noise, time)
    want = torch.cat(tensors["out.noisy_latents"].chunk(2, dim=1)[::-1], dim=1)
    assert_close(noisy, want, 1e-5)
    # Its weight comes from the timestep, which it rounds down.
    snr = min_snr_weight(from_sigma(tensors["out.timestep"] / 1000), 5.0)
    assert_close(snr, tensors["out.min_snr_weight"], 1e-5)
    for row, step in enumerate(tensors["in.steps"].tolist()):
        weight = detail_weight(step, 10_000)
        assert weight == pytest.approx(tensors["out.omega"][row].item(), abs=1e-6)
        errors = weighted_mse(predicted_data(noisy, -output, time), data, LAYOUT.channel_weights(weight))
        assert_close(errors, tensors["out.loss_per_sample_without_min_snr"][row], 1e-5)
        assert_close(errors * snr, tensors["out.loss_per_sample"][row], 1e-5)
        assert_close((errors * snr).mean()[None], tensors["out.loss"][[row]], 1e-5)


def test_training_times_are_the_references(golden) -> None:
    # A continuous shift of sigma in place of its table of 1000, whose smallest sigma is shifted twice.
    uniform = golden("sd3_train_loss")["in.u"]
    got = 1 - shift_time(uniform.clamp(1e-6, 1 - 1e-6), sigma_shift(4.0))
    torch.testing.assert_close(got, golden("sd3_train_loss")["out.sigma"], atol=0.013, rtol=0)


def test_the_task_computes_the_data_objective() -> None:
    task = diffusion(objective="data", min_snr_gamma=5.0, cosine_weight=0.0, sigma_shift=4.0)
    given = batch(0, 1, 2, 3)
    total, _ = loss(task, 5, given)
    time = task.times(given["normal"])
    assert (time < torch.sigmoid(given["normal"])).all()  # shifted towards the noise
    noisy = interpolate(given["latent"], given["noise"], time)
    predicted = task.learners["transformer"].network(noisy, time, given["label"]).sample
    error = (noisy + (1 - time).view(-1, 1, 1, 1) * predicted - given["latent"]).square()
    weights = torch.tensor([1.0] * 4 + [0.5] * 4).view(1, -1, 1, 1) / 0.75
    want = ((error * weights).mean(dim=(1, 2, 3)) * (time / (1 - time)).clamp(max=5.0)).mean()
    assert total.item() == pytest.approx(want.item(), rel=1e-5)


def at_times(*times: float) -> Batch:
    """A batch whose training times, without shift, are these."""
    return batch(*range(len(times))) | {"normal": torch.logit(torch.tensor(times))}


def seen_by_the_transformer(task: DiffusionTask, given: Batch) -> tuple[Tensor, Tensor]:
    """(noisy latents, time) that it is asked about."""
    seen: list[Any] = []
    hook = task.learners["transformer"].network.register_forward_pre_hook(lambda _, arguments: seen.extend(arguments))
    loss(task, 5, given)
    hook.remove()
    return seen[0], seen[1]


def test_a_detail_that_lags_is_noisier_than_its_base() -> None:
    # The clock runs to 1.5; at 0.3 the detail waits, at 0.9 both are on their way, at 1.2 the base has arrived.
    given = at_times(0.2, 0.6, 0.8)
    noisy, told = seen_by_the_transformer(diffusion(detail_lag=0.5), given)
    torch.testing.assert_close(told, torch.tensor([0.3, 0.9, 1.2]))
    base, detail = (torch.tensor(times).view(-1, 1, 1, 1) for times in ((0.3, 0.9, 1.0), (0.0, 0.4, 0.7)))
    want = [
        time * data + (1 - time) * noise
        for time, data, noise in zip(
            (base, detail), LAYOUT.split(given["latent"]), LAYOUT.split(given["noise"]), strict=True
        )
    ]
    torch.testing.assert_close(noisy, LAYOUT.join(*want))


@pytest.mark.parametrize("settings", [{}, {"cosine_masked": False}, {"objective": "data", "min_snr_gamma": 5.0}])
def test_without_a_lag_the_loss_is_that_of_one_time_bit_for_bit(settings: dict[str, Any]) -> None:
    task, given = diffusion(detail_lag=0.0, **settings), batch(0, 1, 2, 3)
    time = task.times(given["normal"])
    noisy = interpolate(given["latent"], given["noise"], time)
    seen, told = seen_by_the_transformer(task, given)
    assert torch.equal(seen, noisy)
    assert torch.equal(told, time)
    predicted = task.learners["transformer"].network(noisy, time, given["label"]).sample
    target, weights = given["latent"] - given["noise"], LAYOUT.channel_weights(0.5)
    if settings.get("objective") == "data":
        errors = weighted_mse(predicted_data(noisy, predicted, time), given["latent"], weights)
        errors = errors * min_snr_weight(time, 5.0)
    else:
        errors = weighted_mse(predicted, target, weights)
    cosine = velocity_cosine(predicted, target, weights if settings.get("cosine_masked", True) else None)
    assert torch.equal(loss(task, 5, given)[0], errors.mean() + cosine.mean())


@pytest.mark.parametrize("settings", [{}, {"cosine_masked": False}, {"objective": "data"}])
def test_a_base_that_has_arrived_is_not_asked_for_its_velocity(settings: dict[str, Any]) -> None:
    task = diffusion(detail_lag=0.5, **settings)
    model, rows = task.learners["transformer"].network, {}
    for name, time in (("arrived", 0.9), ("on its way", 0.6), ("detail waits", 0.2)):
        model.zero_grad()
        loss(task, 10, at_times(time))[0].backward()
        gradient = model.final_layer.linear.weight.grad.abs()
        rows[name] = (float(gradient[:4].max()), float(gradient[4:].max()))
    assert rows["arrived"][0] == 0
    assert min(rows["arrived"][1], *rows["on its way"], *rows["detail waits"]) > 1e-3
    total, _ = loss(task, 0, at_times(0.9))  # nothing counts yet: the base has arrived, the detail has no weight
    assert torch.isfinite(total)
    both, alone = at_times(0.6, 0.9), at_times(0.6)
    assert loss(task, 10, both)[1]["loss_base"] == pytest.approx(loss(task, 10, alone)[1]["loss_base"], rel=1e-5)


def test_min_snr_weighs_every_channel_by_its_own_time() -> None:
    task = diffusion(detail_lag=0.5, objective="data", min_snr_gamma=5.0, cosine_weight=0.0)
    given = at_times(0.6)  # base at 0.9: 5 in place of 9; detail at 0.4
    noisy, told = seen_by_the_transformer(task, given)
    predicted = task.learners["transformer"].network(noisy, told, given["label"]).sample
    base, detail = LAYOUT.split((predicted - (given["latent"] - given["noise"])).square())
    want = (5.0 * 0.1**2 * base.mean() + 0.4 / 0.6 * 0.6**2 * detail.mean()) / 2
    assert loss(task, 10, given)[0].item() == pytest.approx(want.item(), rel=1e-4)


@pytest.mark.parametrize("step", [0, 5, 10])
def test_min_snr_makes_both_objectives_one_loss(step: int) -> None:
    of_data, of_velocity = (
        loss(diffusion(objective=objective, min_snr_gamma=2.0), step)[0] for objective in ("data", "velocity")
    )
    assert of_velocity.item() == pytest.approx(of_data.item(), rel=1e-4)
    assert of_velocity.item() != pytest.approx(loss(diffusion(), step)[0].item(), rel=0.1)


@pytest.mark.parametrize(("step", "ramp"), [(0, 0.0), (5, 0.5), (10, 1.0)])
@pytest.mark.parametrize("end", [0.25, 3.0])
def test_the_ramp_ends_at_the_weight_of_the_detail(step: int, ramp: float, end: float) -> None:
    total, values = loss(diffusion(cosine_weight=0.0, detail_weight=end), step)
    assert values["detail_weight"] == pytest.approx(ramp * end)
    want = (values["loss_base"] + ramp * end * values["loss_detail"]) / (1 + ramp * end)
    assert total.item() == pytest.approx(want, rel=1e-5)


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="frozen_precision bf16 needs precision bf16"):
        diffusion(lora=LoraSettings(frozen_precision="bf16"))


def test_gradient_checkpointing_changes_no_gradient() -> None:
    plain, saving = diffusion(), diffusion(gradient_checkpointing=True)
    grown = []
    for task in (plain, saving):
        model = task.learners["transformer"].network.train()
        loss(task, 5)[0].backward()
        grown.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    assert grown[0].keys() == grown[1].keys()
    for name, gradient in grown[0].items():
        torch.testing.assert_close(grown[1][name], gradient)
