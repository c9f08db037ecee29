"""Pictures: right pixels in the right place, and refusals that name the mistake."""

import math

import numpy as np
import pytest
import torch

from davae.report.figures import image_grid, labelled_strip, latent_figure, loss_curves, overlaid_curves


def _images(count: int, size: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)


def test_grid_places_and_enlarges_pixels() -> None:
    images = _images(5, 4)
    grid = np.asarray(image_grid(images, columns=3, pad=2, scale=2))
    assert grid.shape == (2 * 10 - 2, 3 * 10 - 2, 4)
    last = grid[10:18, 10:18, :3]  # row 1, column 1
    np.testing.assert_array_equal(last[::2, ::2], images[4].permute(1, 2, 0).numpy())
    np.testing.assert_array_equal(last[::2, ::2], last[1::2, 1::2])
    assert (grid[8:10, :, 3] == 0).all()
    assert (grid[10:, 20:, 3] == 0).all()


def test_strip_draws_every_row_at_one_size() -> None:
    full, base = _images(3, 32), _images(3, 16)
    strip = np.asarray(labelled_strip([("input", full), ("a long label to wrap", base)]))
    assert strip.shape[0] == 2 * 128 + 2
    tile = strip[130:, -128:, :3]
    np.testing.assert_array_equal(tile[::8, ::8], base[2].permute(1, 2, 0).numpy())
    margin = strip.shape[1] - 3 * 128 - 2 * 2
    assert strip[:128, :margin, 3].max() > 0, "the label is written"
    with pytest.raises(ValueError, match="same samples"):
        labelled_strip([("input", full), ("base", base[:2])])


def test_curves_draw_and_keep_global_state(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"step": i, "loss": 2 * math.exp(-i / 10) + 0.01, "loss_base": 0.5} for i in range(40)]
    rows.append({"step": 3, "loss": math.nan})
    light, dark = (loss_curves(rows, ["loss", "loss_base"], "loss", dark) for dark in (False, True))
    assert light.size == dark.size == (960, 580)
    assert light.tobytes() != dark.tobytes()
    assert light.getpixel((0, 0))[3] == 0
    with pytest.raises(ValueError, match="No finite value of 'loss_detail'"):
        loss_curves(rows, ["loss_detail"], "detail")
    with pytest.raises(ValueError, match="1 to 4 keys"):
        loss_curves(rows, [], "nothing")


@pytest.mark.parametrize("detail", [0, 4, 6, 8])
def test_latent_figure_for_plain_even_and_uneven_groups(detail: int) -> None:
    figure = latent_figure(torch.randn(4 + detail, 8, 8), base_channels=4)
    plain = latent_figure(torch.randn(4, 8, 8), base_channels=4)
    assert figure.height > plain.height or detail == 0


def test_latent_figure_of_constant_maps() -> None:
    latent_figure(torch.zeros(4, 8, 8), base_channels=2)


def test_images_must_be_uint8() -> None:
    with pytest.raises(ValueError, match="float32"):
        image_grid(torch.rand(1, 3, 4, 4), columns=1)
    with pytest.raises(ValueError, match="columns 0"):
        image_grid(_images(1, 4), columns=0)


def test_a_setting_has_one_colour_in_every_figure() -> None:
    rows, other = ([[{"step": step, "loss": start + step} for step in range(4)]] for start in (1.0, 2.0))

    def colours(cells: dict[str, list[list[dict[str, float]]]]) -> set[tuple[int, ...]]:
        pixels = np.asarray(overlaid_curves(cells, "loss", "loss")).reshape(-1, 4)
        return {tuple(pixel) for pixel in pixels[pixels[:, 3] == 255][:, :3].tolist()}

    blue, orange = (0x2C, 0x5F, 0xD6), (0xC8, 0x55, 0x2B)
    assert {blue, orange} <= colours({"first": rows, "second": other})
    alone = colours({"first": [], "second": rows})
    assert orange in alone and blue not in alone
