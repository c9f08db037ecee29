"""DiT, SiT and REPA checkpoints: a DiT written down here decides what diffusers' class has to give."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DiTTransformer2DModel
from torch import Tensor

import davae
from conftest import assert_close
from davae.convert.dispatch import convert
from davae.convert.from_dit import CONVENTIONS, KINDS, convert_dit, kind_of, recognises, respaced
from davae.convert.keys import ConversionError
from davae.tools.convert import convert_checkpoint

State = dict[str, Tensor]
WIDTH, DEPTH, HEADS, GRID, CLASSES, CHANNELS = 32, 2, 4, 3, 5, 3


def positions(width: int = WIDTH, grid: int = GRID) -> Tensor:
    """[1, N, D]: sines, then cosines of the column, then of the row."""
    rates = [10000 ** (-k / (width // 4)) for k in range(width // 4)]
    rows = [
        [wave(place * rate) for place in (x, y) for wave in (math.sin, math.cos) for rate in rates]
        for y in range(grid)
        for x in range(grid)
    ]
    return torch.tensor(rows)[None]


def public_state(out_channels: int = 2 * CHANNELS, width: int = WIDTH, patch: int = 2) -> State:
    """Random weights under the names that facebookresearch/DiT gives them."""
    shapes = {
        "x_embedder.proj": (width, CHANNELS, patch, patch),
        "t_embedder.mlp.0": (width, 256),
        "t_embedder.mlp.2": (width, width),
        "final_layer.linear": (patch**2 * out_channels, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
    }
    for layer in range(DEPTH):
        shapes |= {
            f"blocks.{layer}.attn.qkv": (3 * width, width),
            f"blocks.{layer}.attn.proj": (width, width),
            f"blocks.{layer}.mlp.fc1": (4 * width, width),
            f"blocks.{layer}.mlp.fc2": (width, 4 * width),
            f"blocks.{layer}.adaLN_modulation.1": (6 * width, width),
        }
    state = {"pos_embed": positions(width), "y_embedder.embedding_table.weight": torch.randn(CLASSES + 1, width)}
    for name, shape in shapes.items():
        state[f"{name}.weight"] = torch.randn(shape) / math.prod(shape[1:]) ** 0.5
        state[f"{name}.bias"] = 0.1 * torch.randn(shape[0])
    return state


def reference(state: State, latent: Tensor, time: Tensor, labels: Tensor, spacing: int = 128) -> Tensor:
    """DiT's forward pass (Peebles and Xie 2023, adaLN-Zero); frequencies of time are 10000^(-k / spacing)."""

    def linear(name: str, values: Tensor) -> Tensor:
        return F.linear(values, state[f"{name}.weight"], state[f"{name}.bias"])

    def modulated(values: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return F.layer_norm(values, values.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]

    patch = state["x_embedder.proj.weight"].shape[-1]
    conv = F.conv2d(latent, state["x_embedder.proj.weight"], state["x_embedder.proj.bias"], stride=patch)
    x = conv.flatten(2).mT + state["pos_embed"]
    angles = time[:, None] * 10000 ** (-torch.arange(128) / spacing)
    embedded = F.silu(linear("t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], dim=1)))
    c = F.silu(linear("t_embedder.mlp.2", embedded) + state["y_embedder.embedding_table.weight"][labels])
    for layer in range(DEPTH):
        block = f"blocks.{layer}"
        shift1, scale1, gate1, shift2, scale2, gate2 = linear(f"{block}.adaLN_modulation.1", c).chunk(6, dim=1)
        qkv = linear(f"{block}.attn.qkv", modulated(x, shift1, scale1))
        q, k, v = qkv.unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)
        x = x + gate1[:, None] * linear(f"{block}.attn.proj", (weights @ v).transpose(1, 2).flatten(2))
        hidden = F.gelu(linear(f"{block}.mlp.fc1", modulated(x, shift2, scale2)), approximate="tanh")
        x = x + gate2[:, None] * linear(f"{block}.mlp.fc2", hidden)
    shift, scale = linear("final_layer.adaLN_modulation.1", c).chunk(2, dim=1)
    tokens = linear("final_layer.linear", modulated(x, shift, scale))
    patches = tokens.unflatten(2, (patch, patch, -1)).unflatten(1, (GRID, GRID))  # [B, row, column, p, q, channel]
    return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def inputs(time: Any) -> tuple[Tensor, Tensor, Tensor]:
    times = torch.tensor(time)
    labels = torch.tensor([CLASSES, *range(len(times) - 1)])  # the first has no class
    return torch.randn(len(times), CHANNELS, 2 * GRID, 2 * GRID), times, labels


def drawn(model: Any, latent: Tensor, time: Tensor, labels: Tensor) -> Tensor:
    return model(latent, timestep=time, class_labels=labels).sample


@pytest.fixture
def state() -> State:
    return public_state()


@torch.no_grad()
def test_a_converted_dit_is_a_dit_but_for_diffusers_frequencies(state: State) -> None:
    model, report = convert_dit(state, "dit", HEADS)
    given = inputs([0.0, 1.0, 37.0, 500.0, 999.0])
    assert_close(drawn(model, *given), reference(state, *given, spacing=127), 1e-5)
    want = reference(state, *given)
    assert (drawn(model, *given) - want)[3:].abs().max() > 0.05 * want.abs().max()  # the reason of the note
    assert "downscale_freq_shift = 0" in str(report)
    for block in model.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    assert_close(drawn(model, *given), want, 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["sit", "repa"])
@pytest.mark.parametrize("out_channels", [CHANNELS, 2 * CHANNELS])
def test_converted_sit_and_repa_are_exact(kind: str, out_channels: int) -> None:
    state = public_state(out_channels)
    model, report = convert_dit(state, kind, HEADS)
    given = inputs([0.0, 0.01, 0.3, 0.77, 1.0])
    assert_close(drawn(model, *given), reference(state, *given), 1e-5)
    assert model.config.out_channels == out_channels
    assert CONVENTIONS[kind] in str(report)
    assert "times in [0, 1] only" in str(report)


@torch.no_grad()
def test_the_frequencies_of_diffusers_alone_would_not_be_exact() -> None:
    state = public_state()
    given = inputs([0.01, 0.3, 0.77, 1.0])
    want, other = (reference(state, *given, spacing=spacing) for spacing in (128, 127))
    assert (want - other).abs().max() > 1e-4 * want.abs().max()


def test_respaced_times_are_those_of_dit() -> None:
    times = torch.linspace(0, 1, 101, dtype=torch.float64)[:, None]
    steps = torch.arange(128, dtype=torch.float64)
    dits, diffusers = (
        torch.cat([(times * 10000 ** (-steps / n)).cos(), (times * 10000 ** (-steps / n)).sin()], dim=1)
        for n in (128, 127)
    )
    matrix = respaced(torch.eye(256, dtype=torch.float64))
    assert (diffusers @ matrix.T - dits).abs().max() < 1e-9
    assert (diffusers - dits).abs().max() > 1e-3
    assert matrix.abs().max() < 1.1  # no large weights that cancel
    assert respaced(torch.randn(4, 256).half()).dtype == torch.float16


def test_every_key_is_accounted_for_by_its_own_name(state: State) -> None:
    state["projectors.0.0.weight"] = torch.zeros(4, 4)
    wrapped = {f"module.{key}": value for key, value in state.items()}
    model, report = convert_dit(wrapped, "repa", HEADS)
    assert {*report.renamed, *report.dropped} == set(wrapped)
    assert not report.loaded
    assert report.renamed["module.blocks.1.attn.qkv.bias"] == "transformer_blocks.1.attn1.to_{q,k,v}.bias"
    shared = "transformer_blocks.*.norm1.emb.timestep_embedder.linear_2.weight"
    assert report.renamed["module.t_embedder.mlp.2.weight"] == shared
    assert report.dropped["module.projectors.0.0.weight"].startswith("head of REPA's alignment loss")
    assert report.dropped["module.pos_embed"].endswith("which the model computes; equal within 1e-05")
    labels = [block.norm1.emb.class_embedder.embedding_table.weight for block in model.transformer_blocks]
    assert all(torch.equal(table, state["y_embedder.embedding_table.weight"]) for table in labels)
    assert labels[0].data_ptr() != labels[1].data_ptr()


def test_the_public_size_fits() -> None:
    width, depth = 1152, 28
    with torch.device("meta"):
        toy = public_state(width=width)
    state = {key: value for key, value in toy.items() if not key.startswith("blocks.1.")}
    of_block = {key: value for key, value in state.items() if key.startswith("blocks.0.")}
    state |= {
        key.replace("blocks.0.", f"blocks.{i}."): value for key, value in of_block.items() for i in range(depth)
    }
    state |= {
        "x_embedder.proj.weight": torch.empty(width, 4, 2, 2, device="meta"),
        "final_layer.linear.weight": torch.empty(32, width, device="meta"),
        "final_layer.linear.bias": torch.empty(32, device="meta"),
        "y_embedder.embedding_table.weight": torch.empty(1001, width, device="meta"),
        "pos_embed": positions(width, 32),
    }
    model, report = convert_dit(state, "dit")
    assert len(report.renamed) + len(report.dropped) == len(state) == 12 + 28 * 10
    assert (model.config.num_attention_heads, model.config.attention_head_dim) == (16, 72)
    assert (model.config.sample_size, model.config.num_embeds_ada_norm) == (64, 1000)
    # DiT-XL/2 has 675.1 M parameters with its position table, which diffusers computes.
    assert sum(value.numel() for value in state.values()) - 1024 * width == pytest.approx(675.1e6 - 0.3e6, rel=1e-3)


def test_early_checkpoints_of_repa_count_their_blocks_in_two_parts(state: State) -> None:
    early = {key.replace("blocks.1.", "decoder_blocks.0."): value for key, value in state.items()}
    assert any("decoder_blocks" in key for key in early)
    want, got = (convert_dit(weights, "repa", HEADS)[0].state_dict() for weights in (state, early))
    assert all(torch.equal(value, want[key]) for key, value in got.items())


def test_the_kind_has_to_be_told_unless_it_shows(tmp_path: Path, state: State) -> None:
    assert recognises({f"module._orig_mod.{key}": value for key, value in state.items()})
    path = tmp_path / "XL.pt"
    torch.save(state, path)
    with pytest.raises(ConversionError, match="Say which it is with kind") as error:
        convert([path], tmp_path / "out", num_attention_heads=HEADS)
    assert all(f"{kind}: {meaning}" in str(error.value) for kind, meaning in CONVENTIONS.items())
    assert not (tmp_path / "out").exists()
    assert kind_of({**state, "module.projectors.0.0.bias": torch.zeros(1)}) == "repa"
    for kind in KINDS:
        convert([path], tmp_path / kind, kind=kind, num_attention_heads=HEADS)
        kept = json.loads((tmp_path / kind / "conversion.json").read_text())
        assert kept["kind"] == kind
        assert f"convention: {CONVENTIONS[kind]}" in kept["notes"]


@torch.no_grad()
def test_a_folder_is_what_diffusers_loads_and_davae_widens(tmp_path: Path, state: State) -> None:
    path = tmp_path / "DiT-XL-2-512x512.pt"
    torch.save({"model": {key: value + 1 for key, value in state.items()}, "ema": state}, path)
    messages: list[str] = []
    convert_checkpoint([path], tmp_path / "out", messages.append, kind="dit", num_attention_heads=HEADS)
    assert "diffusers.DiTTransformer2DModel.from_pretrained" in messages[1]
    model = DiTTransformer2DModel.from_pretrained(tmp_path / "out").eval()
    given = inputs([0.0, 7.0])
    assert_close(drawn(model, *given), reference(state, *given, spacing=127), 1e-5)
    wide = davae.widen(model, detail_channels=3)
    latent, time, labels = given
    got = drawn(wide, torch.cat([latent, torch.randn_like(latent)], dim=1), time, labels)
    assert_close(got[:, :CHANNELS], drawn(model, *given)[:, :CHANNELS], 1e-5)


def test_a_dit_makes_no_pair_of_lightningdit(tmp_path: Path, state: State) -> None:
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=4)
    vae.save_pretrained(tmp_path / "vae")
    torch.save(state, tmp_path / "a.pt")
    options = {"kind": "dit", "num_attention_heads": HEADS, "vae": tmp_path / "vae"}
    with pytest.raises(ConversionError, match="an autoencoder and a LightningDiT; got a DiTTransformer2DModel"):
        convert_checkpoint([tmp_path / "a.pt"], tmp_path / "out", lambda _: None, **options)
    assert not (tmp_path / "out").exists()


def test_heads_are_known_for_published_sizes_only(state: State) -> None:
    with pytest.raises(ConversionError, match="2 layers of width 32 are no published size. Pass num_attention_heads"):
        convert_dit(state, "dit")
    with pytest.raises(ConversionError, match="5 heads do not divide the width 32"):
        convert_dit(state, "dit", 5)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda table: table + 1.5e-4, "within 0.00015, what a running average or dtype rounds"),
        (lambda table: table.bfloat16(), "within 0.00"),
    ],
)
def test_a_rounded_position_table_is_dropped(state: State, change: Callable[[Tensor], Tensor], expected: str) -> None:
    state["pos_embed"] = change(state["pos_embed"])
    assert expected in convert_dit(state, "sit", HEADS)[1].dropped["pos_embed"]


@pytest.mark.parametrize("change", [lambda table: table.roll(1, dims=1), lambda table: table * math.nan])
def test_another_position_table_is_refused(state: State, change: Callable[[Tensor], Tensor]) -> None:
    state["pos_embed"] = change(state["pos_embed"])
    with pytest.raises(ConversionError, match=r"pos_embed differs by .* 3 x 3 grid"):
        convert_dit(state, "sit", HEADS)


def test_normed_queries_and_keys_are_refused(state: State) -> None:
    for layer in range(DEPTH):
        state[f"blocks.{layer}.attn.q_norm.weight"] = torch.ones(8)
    with pytest.raises(ConversionError, match=r"norms queries and keys \(blocks.0.attn.q_norm.weight and 1 more\)"):
        convert_dit(state, "repa", HEADS)


def test_missing_unexpected_and_misshapen_keys_are_named(state: State) -> None:
    del state["blocks.1.mlp.fc2.bias"]
    state["bn.running_mean"] = torch.zeros(3)
    state["blocks.0.attn.qkv.weight"] = torch.zeros(96, 31)
    state["module.x_embedder.proj.bias"] = torch.zeros(32)
    with pytest.raises(ConversionError) as error:
        convert_dit(state, "sit", HEADS)
    text = str(error.value)
    assert "1 missing (transformer_blocks.1.ff.net.2.bias)" in text
    assert "1 unexpected (bn.running_mean[0])" in text
    assert "1 claimed twice (pos_embed.proj.bias)" in text
    assert "3 misshapen (blocks.0.attn.qkv.weight[0] [32, 31], expected [32, 32]" in text


def test_a_layer_that_is_no_time_embedding_is_named(state: State) -> None:
    state["t_embedder.mlp.0.weight"] = torch.zeros(32, 100)
    with pytest.raises(ConversionError, match=r"t_embedder.mlp.0.weight\[0\] \[32, 100\], expected \[32, 256\]"):
        convert_dit(state, "sit", HEADS)
    state["t_embedder.mlp.0.weight"] = torch.zeros(32)
    with pytest.raises(ConversionError, match=r"t_embedder.mlp.0.weight\[0\] \[32\], expected \[32, 256\]"):
        convert_dit(state, "sit", HEADS)
