"""Claims hold exactly when their numbers say so."""

import pytest

from davae.evaluate.claims import generation_claims, reconstruction_claims, speed_claim
from davae.evaluate.generation import CONTROL, SETS, UPGRADED, UPSAMPLED
from davae.evaluate.reconstruction import VARIANTS
from davae.evaluate.results import Measurement
from davae.evaluate.swd import SWD

GOOD = {
    UPGRADED: {128: 10.0, 64: 10.0, 32: 10.9, 16: 10.0},
    UPSAMPLED: {128: 12.0, 64: 12.0, 32: 10.0, 16: 10.0},
    CONTROL: {128: 11.0, 64: 11.0, 32: 10.0, 16: 10.0},
}


def held(distances: dict[str, dict[int, float]]) -> list[bool]:
    measurements = [
        Measurement(SWD.group, row, f"{level} px level", value)
        for row, levels in distances.items()
        for level, value in levels.items()
    ]
    others = [Measurement("another metric", row, "mean", 1e9) for row in distances]
    return [claim.holds for claim in generation_claims([*others, *measurements])]


def outcome(psnr: dict[str, float]) -> list[bool]:
    others = [Measurement("Reconstruction", row, "SSIM", 0.5) for row in psnr]
    measurements = [Measurement("Reconstruction", row, "PSNR", value, "dB") for row, value in psnr.items()]
    return [claim.holds for claim in reconstruction_claims([*measurements, *others])]


def changed(name: str, level: int, value: float) -> dict[str, dict[int, float]]:
    return {**GOOD, name: {**GOOD[name], level: value}}


def test_rows_are_those_that_are_measured() -> None:
    assert set(GOOD) == set(SETS)
    assert {UPSAMPLED, CONTROL} < set(VARIANTS)


def test_each_claim_on_generation_fails_by_its_own_number() -> None:
    assert held(GOOD) == [True, True, True]
    assert held(changed(UPSAMPLED, 64, 10.0)) == [False, True, True]
    assert held(changed(UPGRADED, 32, 11.1)) == [True, False, True]
    assert held(changed(CONTROL, 128, 9.9)) == [True, True, False]


def test_no_claim_on_levels_that_do_not_exist() -> None:
    fine = {name: {level: levels[level] for level in (128, 64)} for name, levels in GOOD.items()}
    assert held(fine) == [True, True]


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_each_claim_on_reconstruction_fails_by_its_own_number(broken: int) -> None:
    psnr = {"full": 30.0, UPSAMPLED: 28.0, "zero detail": 27.0, CONTROL: 20.0}
    assert outcome(psnr) == [True] * 3
    psnr |= [{UPSAMPLED: 30.1}, {"zero detail": 30.1}, {CONTROL: 27.5}][broken]
    assert outcome(psnr).index(False) == broken


def test_speed_says_by_how_much() -> None:
    claim = speed_claim({"ours": 0.02, "native": 0.08}, 4)
    assert claim.holds
    assert "4 times the tokens" in claim.text
    assert claim.detail == "20 ms against 80 ms an image: 4.0 times faster"
    assert not speed_claim({"ours": 0.08, "native": 0.08}, 4).holds
