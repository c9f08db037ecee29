"""Pictures of latents: colours mean what the captions say."""

import numpy as np
import pytest
import torch

from davae.core.layout import LatentLayout
from davae.evaluate.spectrum import radial
from davae.report.latent_figures import correlation_figure, principal_colours, spectrum_figure


def test_components_become_colours() -> None:
    scores = torch.tensor([0.0, 2.5, -2.5, 9.0]).reshape(1, 1, 2, 2)
    colours = principal_colours(torch.cat([scores, -scores], dim=1).double())
    assert colours.dtype == torch.uint8
    assert colours.shape == (1, 3, 2, 2)
    assert colours[0, 0].flatten().tolist() == [128, 255, 0, 255]
    assert colours[0, 1].flatten().tolist() == [128, 0, 255, 0]
    assert (colours[0, 2] == 128).all(), "a component that is not there is grey"
    with pytest.raises(ValueError, match="at most 3"):
        principal_colours(torch.zeros(1, 4, 2, 2))


def _colours(figure: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(colour) for colour in np.unique(figure[figure[..., 3] == 255][:, :3], axis=0)}


def test_heat_map_shows_signs_the_border_and_what_is_undefined() -> None:
    matrix = torch.eye(4).double()
    matrix[0, 2] = matrix[2, 0] = -1
    plain = _colours(np.asarray(correlation_figure([("one", matrix, LatentLayout(2, 2))])))
    assert {(103, 0, 31), (5, 48, 97), (26, 26, 30)} <= plain, "1 is dark red, -1 dark blue, the border near black"
    matrix[3] = matrix[:, 3] = torch.nan
    figure = np.asarray(correlation_figure([("one", matrix, LatentLayout(2, 2))]))
    grey = (figure == (0x7C, 0x7C, 0x85, 255)).all(axis=-1)
    assert grey.mean() > 0.15, "7 of 16 cells are undefined"


def test_border_lies_between_base_and_detail() -> None:
    figure = np.asarray(correlation_figure([("", torch.zeros(4, 4).double(), LatentLayout(1, 3))]))
    border = (figure == (26, 26, 30, 255)).all(axis=-1)
    cells = (figure[..., 3] == 255) & (figure[..., :3].astype(int).sum(axis=-1) > 720)
    column = np.flatnonzero(border.mean(axis=0) > 0.3).mean()
    left, right = np.flatnonzero(cells.mean(axis=0) > 0.3)[[0, -1]]
    assert (column - left) / (right - left) == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (3, 2)])
def test_panels_stand_side_by_side(count: int, columns: int) -> None:
    low, high = torch.rand(3, 8, 8).double() + 0.1, torch.rand(5, 6, 12).double() + 5
    figure = spectrum_figure([(f"model {i}", radial(low), radial(high)) for i in range(count)])
    assert figure.size == ((1400, 720) if count == 1 else (800 * columns, 600 * (count // 2 + count % 2)))
    assert figure.getpixel((0, 0))[3] == 0
    matrices = [(f"model {i}", torch.eye(6).double(), LatentLayout(3, 3)) for i in range(count)]
    assert correlation_figure(matrices).width == (1200 if count == 1 else 800 * columns)


def test_lines_lie_where_their_power_is() -> None:
    flat = radial(torch.ones(3, 8, 8).double())
    figure = np.asarray(spectrum_figure([("", radial(torch.full((2, 8, 8), 100.0).double()), flat)])).astype(int)
    base, detail = (
        np.flatnonzero((np.abs(figure[..., :3] - colour).sum(axis=-1) < 12).sum(axis=1) > 500).mean()
        for colour in ((0x4A, 0x7F, 0xE0), (0xD4, 0x69, 0x3C))
    )
    assert base < detail, "more power is higher up"


@pytest.mark.parametrize("name", ["price $1_$", r"$\frac$", "a $ b"])
def test_dollar_signs_in_names_are_no_formulas(name: str) -> None:
    low, high = radial(torch.rand(3, 8, 8).double() + 0.1), radial(torch.rand(3, 8, 8).double() + 5)
    assert spectrum_figure([(name, low, high)]).size == (1400, 720)
