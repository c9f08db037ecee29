"""What a run claims, as functions of its numbers: each claim holds or fails, and says by how much."""

from collections.abc import Iterable, Mapping

from davae.evaluate.generation import CONTROL, UPGRADED, UPSAMPLED
from davae.evaluate.results import Claim, Measurement
from davae.evaluate.similarity import PSNR
from davae.evaluate.swd import SWD


def reconstruction_claims(measurements: Iterable[Measurement]) -> list[Claim]:
    """Of the mean PSNR (dB) of every variant of `evaluate.reconstruction.VARIANTS`."""
    psnr = {item.row: item.value for item in measurements if item.column == PSNR.name}

    def above(text: str, better: str, worse: str) -> Claim:
        detail = f"{better} {psnr[better]:.2f} dB, {worse} {psnr[worse]:.2f} dB"
        return Claim(text, psnr[better] > psnr[worse], detail)

    return [
        above("The full latent reconstructs better than the base upsampled", "full", UPSAMPLED),
        above("The decoder uses the detail: full beats zero detail", "full", "zero detail"),
        above("Zero detail beats random detail", "zero detail", CONTROL),
    ]


def generation_claims(measurements: Iterable[Measurement]) -> list[Claim]:
    """Of the sliced Wasserstein distances of every level, finest first. The two finest levels are fine."""
    distances: dict[str, dict[str, float]] = {}
    for item in measurements:
        if item.group == SWD.group:
            distances.setdefault(item.row, {})[item.column] = item.value
    levels = list(distances[UPGRADED])
    fine, coarse = levels[:2], levels[2:]

    def closer(text: str, other: str, levels: list[str], slack: float = 1.0) -> Claim:
        ours, theirs = distances[UPGRADED], distances[other]
        detail = "; ".join(f"{n}: {UPGRADED} {ours[n]:.1f}, {other} {theirs[n]:.1f}" for n in levels)
        holds = all(ours[n] < theirs[n] if slack == 1 else ours[n] <= slack * theirs[n] for n in levels)
        return Claim(text, holds, detail)

    claims = [
        closer(
            "Generated images are closer to real ones than the base upsampled, at the two finest levels",
            UPSAMPLED,
            fine,
        ),
        closer(
            "The generated detail matters: the same base latents with random detail are farther from real images",
            CONTROL,
            fine,
        ),
    ]
    if coarse:
        claims.insert(1, closer("The coarse levels are not worse by more than 10%", UPSAMPLED, coarse, slack=1.1))
    return claims


def speed_claim(seconds: Mapping[str, float], token_ratio: int) -> Claim:
    """Of the seconds an image of two models, the upgraded one first."""
    fast, slow = seconds.values()
    return Claim(
        f"An image takes less time than with a transformer that needs {token_ratio} times the tokens",
        fast < slow,
        f"{fast * 1000:.0f} ms against {slow * 1000:.0f} ms an image: {slow / fast:.1f} times faster",
    )
