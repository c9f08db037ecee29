"""The autoencoder in training: what is frozen stays so, in which units the base is seen, activations recomputed."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn

from conftest import assert_close
from davae.data.solids import SolidsSource
from davae.models.autoencoder import AutoencoderDA
from davae.train.checkpoint import CheckpointStore
from davae.train.feed import Share, feed
from davae.train.image_set import ImageSet
from davae.train.loop import train
from davae.train.objective import AdversarialConfig, AutoencoderConfig, ReconstructionConfig, TokenizerConfig
from davae.train.reconstructor import PlainReconstructor, Reconstructor, UpgradedReconstructor
from davae.train.settings import OptimConfig
from davae.train.tokenizer import TokenizerTask
from tiny_pair import tiny_autoencoder


def tiny_kl(**settings: Any) -> AutoencoderKL:
    """f4 with 4 channels."""
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    shape = {"block_out_channels": (8, 8, 16), "norm_num_groups": 4, "layers_per_block": 1, "latent_channels": 4}
    return AutoencoderKL(**levels, **shape, **settings).eval()


def taesd() -> AutoencoderTiny:
    """f4 with 4 channels."""
    widths, blocks = (8, 8, 8), (1, 1, 1)
    return AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=blocks,
        num_decoder_blocks=blocks,
    ).eval()


BASES = {"AutoencoderDC": tiny_autoencoder, "AutoencoderKL": tiny_kl, "AutoencoderTiny": taesd}


def structured(base: nn.Module, **settings: Any) -> UpgradedReconstructor:
    """With two detail channels per base channel."""
    torch.manual_seed(0)
    config = TokenizerConfig(**{"steps": 3, "batch_size": 2, "precision": "fp32", "ema_decay": 0.9} | settings)
    units = {"base_units": config.base_units, "clamp_base_image": config.clamp_base_image}
    return UpgradedReconstructor(AutoencoderDA.from_base(base, detail_channels=8, **units), config, seed=0)


def plain(base: nn.Module, **settings: Any) -> PlainReconstructor:
    torch.manual_seed(0)
    return PlainReconstructor(base, AutoencoderConfig(steps=3, batch_size=2, precision="fp32", **settings), seed=0)


def batch() -> dict[str, Tensor]:
    return ImageSet(SolidsSource(8), 32, seed=0).__getitems__([0, 1])


def images() -> Tensor:
    return batch()["image"] / 127.5 - 1


def fit(reconstructor: Reconstructor, config: ReconstructionConfig, **parts: Any) -> dict[str, Any]:
    task, training_set = TokenizerTask(reconstructor, config), ImageSet(SolidsSource(8), 32, seed=0)
    share, accelerator = Share(config.batch_size), Accelerator(cpu=True)
    return train(task, lambda start: feed(training_set, share, start, config.steps), config, accelerator, **parts)


@pytest.mark.parametrize("kind", BASES)
def test_with_a_frozen_trunk_the_down_block_and_the_decoder_move_alone(tmp_path: Path, kind: str) -> None:
    optim = OptimConfig(lr=1e-2, weight_decay=0.1)
    reconstructor = structured(BASES[kind](), freeze_encoder_trunk=True, optim=optim)
    model, family = reconstructor.network, reconstructor.network.family
    head = f"encoder.{family.head(model.base_vae.encoder)}."
    free = {name for name in model.state_dict() if name.startswith((head, "decoder."))}
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == free
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    store = CheckpointStore(tmp_path, {})
    average = fit(reconstructor, reconstructor.config, store=store)["autoencoder"]
    after = model.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == free
    assert any(name.startswith("encoder.") for name in before.keys() - free)
    assert set(average.shadow) == free
    groups = store.latest().groups
    assert set(groups["autoencoder"]) == free
    assert len({key.split(".")[0] for key in groups["autoencoder.optimizer"]}) == len(free)
    for name, tensor in model.base_vae.encoder.state_dict().items():
        if f"encoder.{name}" in before.keys() - free:
            assert torch.equal(tensor, after[f"encoder.{name}"])  # the trunk is the base's own to the end


def test_the_trunk_moves_by_default() -> None:
    reconstructor = structured(tiny_kl(), optim=OptimConfig(lr=1e-2))
    before = reconstructor.network.encoder.conv_in.weight.clone()
    fit(reconstructor, reconstructor.config)
    assert not torch.equal(reconstructor.network.encoder.conv_in.weight, before)


def gradients(reconstructor: Any, config: ReconstructionConfig) -> tuple[Tensor, dict[str, Tensor], int]:
    """Loss and gradients with both adaptive weights, and how often the middle of the decoder ran."""
    runs: list[int] = []
    decoder = getattr(reconstructor.network, "autoencoder", reconstructor.network).decoder
    decoder.mid_block.register_forward_pre_hook(lambda *_: runs.append(1))  # recomputing stops before its end
    torch.manual_seed(0)  # of the judge
    loss = TokenizerTask(reconstructor, config).loss("autoencoder", reconstructor.network, batch(), 0)
    assert "adversarial_weight" in loss.values
    loss.total.backward()
    return loss.total, {name: weight.grad for name, weight in reconstructor.network.named_parameters()}, len(runs)


@pytest.mark.parametrize(
    ("make", "settings"), [(structured, {}), (structured, {"freeze_encoder_trunk": True}), (plain, {})]
)
def test_recomputed_activations_change_neither_loss_nor_gradients(make: Any, settings: dict[str, Any]) -> None:
    base, found = tiny_kl().state_dict(), []
    objective = TokenizerConfig if make is structured else AutoencoderConfig
    config = objective(steps=1, batch_size=2, adversarial=AdversarialConfig(start_step=0, width=4))
    for checkpointing in (False, True):
        autoencoder = tiny_kl()
        autoencoder.load_state_dict(base)
        reconstructor = make(autoencoder, gradient_checkpointing=checkpointing, **settings)
        found.append(gradients(reconstructor, config))
    (want, exact, once), (got, recomputed, often) = found
    assert once == 1
    assert often > 1
    assert_close(got[None], want[None], 1e-6)
    for name, gradient in exact.items():
        assert (gradient is None) == (recomputed[name] is None)
        if gradient is not None:
            assert_close(recomputed[name], gradient, 1e-5)


@pytest.mark.parametrize("kind", ["AutoencoderDC", "AutoencoderTiny"])
def test_checkpointing_is_refused_where_diffusers_has_none_or_a_wrong_one(kind: str) -> None:
    with pytest.raises(ValueError, match=f"gradient_checkpointing cannot be used over {kind}: .* Set it to false"):
        structured(BASES[kind](), gradient_checkpointing=True)
    if kind == "AutoencoderDC":
        with pytest.raises(ValueError, match="gradient_checkpointing cannot be used over AutoencoderDC"):
            plain(BASES[kind](), gradient_checkpointing=True)


@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize("units", ["raw", "scaled"])
def test_detail_is_aligned_to_the_base_in_its_units(units: str, clamp: bool) -> None:
    base = tiny_kl(scaling_factor=1.5305, shift_factor=0.0609)
    reconstructor = structured(base, base_units=units, clamp_base_image=clamp, detail_dropout=0)
    model, pictures = reconstructor.network, 1.2 * images()
    small = F.interpolate(pictures, scale_factor=0.5, mode="bicubic", align_corners=False)
    assert small.abs().max() > 1
    with torch.no_grad():
        raw = base.encode(small.clamp(-1, 1) if clamp else small).latent_dist.mode()
        result = reconstructor.reconstruct(model, pictures, [0, 1])
    want = (raw - 0.0609) * 1.5305 if units == "scaled" else raw
    assert_close(result.base, want)
    with torch.no_grad():
        assert_close(model.decoder(torch.cat([want, result.latent], dim=1)), result.sample)  # the decoder's too
    stored = {"image": (pictures + 1) * 127.5, "position": torch.arange(2)}
    aligned = TokenizerTask(reconstructor, reconstructor.config).loss("autoencoder", model, stored, 0).values["align"]
    grouped = result.latent.unflatten(1, (4, 2)).mean(dim=2)
    assert_close(aligned[None], (grouped - want).square().mean()[None])


@pytest.mark.parametrize("kind", BASES)
def test_weights_are_measured_at_the_down_block_and_the_last_convolution(kind: str) -> None:
    reconstructor = structured(BASES[kind]())
    model = reconstructor.network
    assert reconstructor.latent_weight is model.family.head_of(model.encoder).conv.weight
    convolutions = [part for part in model.decoder.modules() if isinstance(part, nn.Conv2d)]
    assert reconstructor.last_weight is convolutions[-1].weight
    assert reconstructor.latent_weight.requires_grad
    assert reconstructor.last_weight.requires_grad


@pytest.mark.parametrize(("noise", "spread"), [(0.0, 0.0), (0.5, 0.5)])
def test_a_plain_autoencoder_without_a_posterior_has_fixed_noise(noise: float, spread: float) -> None:
    base: AutoencoderDC = tiny_autoencoder()
    reconstructor = plain(base, latent_noise=noise)
    with torch.no_grad():
        result = reconstructor.reconstruct(reconstructor.network, images(), [0, 1])
        assert_close(result.mean, base.encode(images()).latent)
        assert_close(result.sample, base.decode(result.latent).sample)
    assert result.logvar is None
    assert float((result.latent - result.mean).std()) == pytest.approx(spread, abs=0.06)


def test_a_plain_autoencoder_with_a_posterior_draws_from_it() -> None:
    base = tiny_kl()
    with torch.no_grad():
        base.quant_conv.bias[4:] += 3.0
    reconstructor = plain(base, latent_noise=9.0)  # of no consequence here
    with torch.no_grad():
        posterior = base.encode(images()).latent_dist
        result = reconstructor.reconstruct(reconstructor.network, images(), [0, 1])
        again = reconstructor.reconstruct(reconstructor.network, images()[1:], [1])
    assert_close(result.mean, posterior.mean)
    assert_close(result.logvar, posterior.logvar)
    assert float(((result.latent - posterior.mean) / posterior.std).std()) == pytest.approx(1, abs=0.1)
    assert_close(again.latent, result.latent[1:])  # a matter of the position alone
