"""Saved autoencoders, by folder, pipeline and hub name."""

from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file

import davae
from davae.models.loading import load_autoencoder
from tiny_pair import build_tiny_pair, tiny_autoencoder

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_pair(tmp_path_factory.mktemp("loading") / "pair")


def tiny_of(cls: type) -> torch.nn.Module:
    sizes = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    return cls(**sizes, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), latent_channels=4)


@pytest.mark.parametrize(
    "make",
    [
        tiny_autoencoder,
        lambda: tiny_of(AutoencoderTiny),
        lambda: tiny_of(davae.AutoencoderTAEF2),
        lambda: davae.AutoencoderDA.from_base(tiny_autoencoder()),
    ],
    ids=["plain", "tiny", "our own class", "upgraded"],
)
def test_what_was_saved_comes_back_ready_to_measure(make, tmp_path: Path) -> None:
    saved = make().train().to(torch.bfloat16)
    saved.save_pretrained(tmp_path / "one")
    loaded = load_autoencoder(tmp_path / "one")
    assert type(loaded) is type(saved)
    assert loaded.dtype == torch.float32
    assert not any(module.training for module in loaded.modules())
    for name, tensor in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name].to(tensor.dtype), tensor), name


def test_the_autoencoder_of_a_pipeline_is_found(pair: Path) -> None:
    assert type(load_autoencoder(pair)) is type(load_autoencoder(str(pair / "vae"))) is type(tiny_autoencoder())


def test_a_name_on_the_hub(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the hub's own cache: a plain autoencoder, and a pipeline."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name, inside in (("plain", ""), ("pipeline", "vae")):
        repository = tmp_path / "hub" / f"models--someone--{name}"
        folder = repository / "snapshots" / "abc" / inside
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("abc")
        folder.mkdir(parents=True)
        for file in ("config.json", WEIGHTS):
            (folder / file).write_bytes((pair / "vae" / file).read_bytes())
        assert type(load_autoencoder(f"someone/{name}")) is type(tiny_autoencoder())
    with pytest.raises(FileNotFoundError, match="no such folder here, and the hub says: "):
        load_autoencoder("someone/nothing")


def test_variants_are_fetched_only_where_there_is_nothing_else(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of the hub, of repositories with plain weights, with a variant alone, and of both."""
    asked: list[str] = []

    def hub(files: list[str], folder: Path) -> Any:
        def snapshot_download(name: str, allow_patterns: list[str]) -> str:
            for file in files:
                if any(fnmatch(file, pattern) for pattern in allow_patterns):
                    asked.append(file)
                    (folder / file).parent.mkdir(parents=True, exist_ok=True)
                    source = "config.json" if file.endswith("config.json") else WEIGHTS
                    (folder / file).write_bytes((pair / "vae" / source).read_bytes())
            return str(folder)

        return snapshot_download

    fp16, other = "diffusion_pytorch_model.fp16.safetensors", "unet/model.safetensors"
    for files, wanted in (
        (["vae/config.json", f"vae/{WEIGHTS}", f"vae/{fp16}", other], {"vae/config.json", f"vae/{WEIGHTS}"}),
        (["vae/config.json", f"vae/{fp16}", other], {"vae/config.json", f"vae/{fp16}"}),
        (["config.json", fp16, other], {"config.json", fp16}),
    ):
        asked.clear()
        with TemporaryDirectory() as folder:
            monkeypatch.setattr("davae.models.loading.snapshot_download", hub(files, Path(folder)))
            assert type(load_autoencoder("someone/something")) is type(tiny_autoencoder())
        assert set(asked) == wanted


def test_a_mistyped_path_is_not_asked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no autoencoder in runs/nmae: got no such folder"):
        load_autoencoder("runs/nmae")


def test_what_is_no_autoencoder_is_explained(pair: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"names LightningDiT, known are AutoencoderDA, .*AutoencoderTAEF2"):
        load_autoencoder(pair / "transformer")
    with pytest.raises(FileNotFoundError, match="got a file"):
        load_autoencoder(pair / "model_index.json")
    (tmp_path / "run" / "tokenizer").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"got no config.json.*Perhaps you mean .*run/tokenizer"):
        load_autoencoder(tmp_path / "run")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="names no class"):
        load_autoencoder(tmp_path)


def test_incomplete_weights_are_refused(tmp_path: Path) -> None:
    tiny_autoencoder().save_pretrained(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    del state["decoder.conv_in.weight"]
    save_file(state, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"incomplete: 1 tensors of AutoencoderDC .* decoder\.conv_in\.weight"):
        load_autoencoder(tmp_path)


def test_pickles_are_not_read(tmp_path: Path) -> None:
    tiny_autoencoder().save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(OSError, match="safetensors"):
        load_autoencoder(tmp_path)
