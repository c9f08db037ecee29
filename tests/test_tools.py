"""Verbs without a recipe: convert, analyze, and evaluate over a list of autoencoders."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import davae
from davae.cli import TOOLS, main
from davae.data.solids import SolidsSource
from tiny_pair import tiny_autoencoder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A plain and an upgraded autoencoder, and four pictures."""
    root = tmp_path_factory.mktemp("tools")
    plain = tiny_autoencoder()
    upgraded = davae.AutoencoderDA.from_base(plain, scale=2, detail_channels=8)
    upgraded.calibrate(torch.zeros(8), torch.ones(8))
    plain.save_pretrained(root / "plain")
    upgraded.save_pretrained(root / "upgraded")
    (root / "pictures").mkdir()
    for index, picture in enumerate(SolidsSource(4).images(range(4), 64)):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(root / "pictures" / f"{index}.png")
    return {path.name: path for path in root.iterdir()}


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out + captured.err


@pytest.mark.parametrize("verb", TOOLS)
def test_every_tool_explains_itself(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    assert f"davae {verb}" in capsys.readouterr().out


def test_autoencoders_stand_side_by_side(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, folders: dict[str, Path]
) -> None:
    paths = (folders["plain"], folders["upgraded"])
    status, text = run(
        capsys, "evaluate", "--autoencoders", *paths, "--images", folders["pictures"], "--out", tmp_path / "t"
    )
    assert status == 0
    assert "plain" in text and "upgraded" in text and "PSNR" in text
    rows = {item["row"] for item in json.loads((tmp_path / "t" / "results.json").read_text())["measurements"]}
    assert {"plain", "upgraded"} <= rows and any("bicubic" in row for row in rows)
    assert (tmp_path / "t" / "report.html").is_file()


@pytest.mark.parametrize("arguments", [[], ["--autoencoders", "x"], ["r.yaml", "--images", "x"]])
def test_evaluate_wants_a_recipe_or_autoencoders_and_images(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    status, text = run(capsys, "evaluate", *arguments)
    assert status == 1
    assert "a recipe; or --images FOLDER with --autoencoders PATH ...; or --images PATH with --reference" in text


def test_a_latent_is_analysed(capsys: pytest.CaptureFixture[str], tmp_path: Path, folders: dict[str, Path]) -> None:
    status, text = run(
        capsys, "analyze", folders["upgraded"], folders["pictures"], "--size", 64, "--out", tmp_path / "page"
    )
    assert status == 0
    assert str(tmp_path / "page" / "report.html") in text
    assert "Radial power spectrum" in (tmp_path / "page" / "report.html").read_text()


def test_a_checkpoint_is_converted(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source = davae.AutoencoderTAEF2(
        latent_channels=4,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    torch.save(source.encoder.layers.state_dict(), tmp_path / "encoder.pth")
    decoder = source.decoder.layers.state_dict()  # the checkpoint's sequence begins with a clamp
    shifted = {f"{int(key.split('.')[0]) + 1}.{key.split('.', 1)[1]}": value for key, value in decoder.items()}
    torch.save(shifted, tmp_path / "decoder.pth")
    status, text = run(capsys, "convert", tmp_path / "encoder.pth", tmp_path / "decoder.pth", "--to", tmp_path / "m")
    assert status == 0, text
    assert "AutoencoderTAEF2" in text
    model = davae.AutoencoderTAEF2.from_pretrained(tmp_path / "m")
    assert all(torch.equal(tensor, source.state_dict()[key]) for key, tensor in model.state_dict().items())
    status, text = run(capsys, "convert", tmp_path / "encoder.pth", "--to", tmp_path / "m")
    assert status == 1  # what is there is never replaced
