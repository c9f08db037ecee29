"""results.json: round trip, what it refuses, and that a failed save leaves the old file."""

import json
import math
from pathlib import Path

import pytest

from davae.evaluate.hardware import hardware
from davae.evaluate.results import Claim, Figure, Measurement, Results


def _results() -> Results:
    return Results(
        run={"name": "tiny", "seeds": [0, 1]},
        measurements=[Measurement("Reconstruction", "full", "PSNR", 27.4, "dB", "higher", {"images": 8})],
        figures=[Figure("Strip", "What the detail carries.", "figures/strip.png")],
        claims=[Claim("Full beats base.", True, "27.4 dB against 26.1 dB")],
    )


def test_round_trip_is_sorted_and_readable(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.json"
    _results().save(path)
    assert Results.load(path) == _results()
    text = path.read_text()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"
    assert [item.name for item in path.parent.iterdir()] == ["results.json"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_numbers_are_refused(value: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="measurement 'g / r / c'"):
        Measurement("g", "r", "c", value)
    with pytest.raises(ValueError, match="guidance, 1"):
        Measurement("g", "r", "c", 1.0, protocol={"guidance": [1.0, value]})
    path = tmp_path / "results.json"
    _results().save(path)
    broken = _results()
    broken.run["seconds"] = value
    with pytest.raises(ValueError, match="run, seconds"):
        broken.save(path)
    assert Results.load(path) == _results()


def test_a_cell_is_measured_once(tmp_path: Path) -> None:
    results = _results()
    results.measurements *= 2
    with pytest.raises(ValueError, match="Measured twice: 'Reconstruction / full / PSNR'"):
        results.save(tmp_path / "results.json")


def test_other_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allowed 'higher', 'lower'"):
        Measurement("g", "r", "c", 1.0, better="up")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs a number"):
        Measurement("g", "r", "c", "1.0")  # type: ignore[arg-type]
    path = tmp_path / "results.json"
    path.write_text('{"format": 99}')
    with pytest.raises(ValueError, match="got format 99"):
        Results.load(path)


def test_hardware_can_be_saved(tmp_path: Path) -> None:
    found = hardware()
    assert found["cpu"]
    assert found["cores"] >= 1
    Results(run={"hardware": found}).save(tmp_path / "results.json")
