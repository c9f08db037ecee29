"""The table of autoencoders: each row is what its name says."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

import davae
from davae.core.observer import Silent
from davae.evaluate.autoencoder_table import Row, TestImages, measure_autoencoders, multiple_of
from davae.evaluate.reconstruction_fid import ReconstructionFID
from davae.evaluate.similarity import psnr, ssim
from tiny_pair import tiny_autoencoder
from tiny_space import tiny_space

SIZES = ((32, 48), (24, 16))


class Distance(nn.Module):
    """In the place of LPIPS: asks that images are clamped to [-1, 1]."""

    def forward(self, images: Tensor, references: Tensor) -> Tensor:
        assert max(images.abs().max(), references.abs().max()) <= 1
        assert references.min() < -0.5
        return (images - references).abs().flatten(1).mean(dim=1)


def pictures(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    coarse = [torch.rand(1, 3, height // 4, width // 4, generator=generator) for height, width in sizes]
    smooth = [F.interpolate(c, scale_factor=4, mode="bicubic").clamp(0, 1)[0] for c in coarse]
    return [(image * 255).round().to(torch.uint8) for image in smooth]


def measure(
    autoencoders: dict, images: list[Tensor], perceptual: nn.Module | None = None, fid=None
) -> dict[str, Row]:
    source = TestImages([f"{i}.png" for i in range(len(images))], images.__getitem__, {"preprocessing": "none"})
    rows = measure_autoencoders(autoencoders, source, perceptual, torch.device("cpu"), Silent(), fid)
    return {row.name: row for row in rows}


def value(row: Row, column: str) -> float:
    return next(item.value for item in row.measurements if item.column == column)


def mean(rebuilt: list[Tensor], images: list[Tensor], metric=psnr) -> float:
    """Of images [1, 3, H, W] in [-1, 1]."""
    unit = [((image + 1) / 2).clamp(0, 1) for image in rebuilt]
    return torch.cat([metric(a, b[None]) for a, b in zip(unit, images, strict=True)]).mean().item()


@pytest.fixture(scope="module")
def base():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return tiny_autoencoder()


@pytest.fixture(scope="module")
def upgraded(base):
    model = davae.AutoencoderDA.from_base(base, detail_channels=8).eval()
    model.calibrate(torch.full((8,), 0.3), torch.full((8,), 1.7))
    return model


@torch.no_grad()
def test_rows_are_what_they_say(base, upgraded) -> None:
    images = pictures(*SIZES)
    inputs = [image[None].float() / 127.5 - 1 for image in images]
    rows = measure({"plain": base, "upgraded": upgraded}, images)
    assert list(rows) == [
        "plain",
        "plain, half resolution",
        "plain, half resolution, antialiased",
        "upgraded",
        "bicubic, half resolution",
        "bicubic, half resolution, antialiased",
    ]
    expected = {
        "plain": [base.decode(base.encode(x).latent).sample for x in inputs],
        # Exactly what the upgraded autoencoder's base channels hold.
        "plain, half resolution": [upgraded.preview(upgraded.encode(x).latent_dist.mode()) for x in inputs],
        "upgraded": [upgraded(x).sample for x in inputs],
        "bicubic, half resolution": [enlarged(upgraded.base_image(x)) for x in inputs],
    }
    for name, rebuilt in expected.items():
        assert value(rows[name], "PSNR") == pytest.approx(mean(rebuilt, images), abs=1e-4), name
        assert value(rows[name], "SSIM") == pytest.approx(mean(rebuilt, images, ssim), abs=1e-5), name
    soft = [enlarged(F.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True).clamp(-1, 1)) for x in inputs]
    assert value(rows["bicubic, half resolution, antialiased"], "PSNR") == pytest.approx(mean(soft, images), abs=1e-4)
    assert value(rows["plain, half resolution"], "PSNR") != value(rows["plain, half resolution, antialiased"], "PSNR")


def enlarged(image: Tensor) -> Tensor:
    return F.interpolate(image, scale_factor=2, mode="bicubic")


def test_the_cost_of_a_row(base, upgraded) -> None:
    rows = measure({"plain": base, "upgraded": upgraded}, pictures(SIZES[0]))
    cost = {
        name: [value(row, column) for column in ("positions at 1024 px", "channels", "values a pixel")]
        for name, row in rows.items()
        if "bicubic" not in name
    }
    assert cost == {
        "plain": [256**2, 4, 4 / 16],
        "plain, half resolution": [128**2, 4, 4 / 64],
        "plain, half resolution, antialiased": [128**2, 4, 4 / 64],
        "upgraded": [128**2, 12, 12 / 64],
    }
    assert value(rows["bicubic, half resolution"], "values a pixel") == 0.75
    assert {m.column for m in rows["bicubic, half resolution"].measurements} == {"PSNR", "SSIM", "values a pixel"}
    protocol = rows["plain, half resolution"].measurements[0].protocol
    assert protocol["latent"] == "4 x 6 positions for the first image, 32 x 48 px"
    assert protocol["class"] == "AutoencoderDC"
    assert "lpips" not in protocol


def test_a_perceptual_distance_is_a_column(base) -> None:
    images = pictures(*SIZES)
    rows = measure({"plain": base}, images, Distance())
    with torch.no_grad():
        distances = []
        for image in images:
            x = image[None].float() / 127.5 - 1
            distances.append((base.decode(base.encode(x).latent).sample.clamp(-1, 1) - x).abs().mean())
    assert value(rows["plain"], "LPIPS") == pytest.approx(torch.stack(distances).mean().item(), abs=1e-5)
    assert "clamped" in rows["plain"].measurements[0].protocol["lpips"]


def test_rfid_is_a_column_and_originals_count_once(base) -> None:
    fid = ReconstructionFID(tiny_space(), torch.device("cpu"))
    rows = measure({"plain": base, "again": base}, pictures(*SIZES), fid=fid)
    assert value(rows["plain"], "rFID-2") == pytest.approx(value(rows["again"], "rFID-2"), rel=1e-9)
    assert all(value(row, "rFID-2") > 0 for row in rows.values())


def test_sides_fit_every_row(base, upgraded) -> None:
    f8 = AutoencoderKL(
        block_out_channels=(4,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
    )
    assert multiple_of([]) == 2
    assert multiple_of([base]) == 8  # f4, at half the resolution, too
    assert multiple_of([upgraded]) == 8
    assert multiple_of([f8]) == multiple_of([upgraded, f8]) == 16
    assert multiple_of([davae.AutoencoderDA.from_base(base, scale=4, detail_channels=8)]) == 16


def test_worst_and_best_image_and_where_they_differ() -> None:
    flat = torch.full((3, 160, 192), 200, dtype=torch.uint8)
    flat[:, 100:132, 150:182] = 100  # the edges of this square are all that bicubic changes
    noise = torch.randint(0, 256, (3, 160, 192), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    row = measure({}, [pictures((160, 192))[0], flat, noise])["bicubic, half resolution"]
    assert (row.worst.id, row.best.id) == ("2.png", "1.png")
    assert row.worst.psnr < value(row, "PSNR") < row.best.psnr
    assert row.best.original.shape == row.best.rebuilt.shape == (3, 128, 128)
    assert (row.best.original == 100).sum() == 3 * 32 * 32  # the whole square is in the window
    assert (row.best.original.int() - row.best.rebuilt.int()).abs().max() > 10
    assert (
        noise.unfold(1, 128, 1)
        .unfold(2, 128, 1)[:, ::16, ::16]
        .eq(row.worst.original[:, None, None])
        .flatten(3)
        .all(dim=3)
        .all(dim=0)
        .any()
    )  # unchanged pixels of the image


def test_an_exact_image_counts_as_100_db() -> None:
    rows = measure({}, [torch.zeros(3, 16, 16, dtype=torch.uint8), pictures((16, 16))[0]])
    row = rows["bicubic, half resolution"]
    assert row.best.psnr == 100
    assert value(row, "PSNR") == pytest.approx((100 + row.worst.psnr) / 2)
