"""Generated sets against real images: sliced Wasserstein distance per Laplacian level."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from davae.evaluate.results import Measurement, hardware
from davae.evaluate.swd import SlicedWasserstein

GROUP = "Generation: sliced Wasserstein distance to real images"
UPSAMPLED, UPGRADED, CONTROL = "base upsampled", "upgraded", "random detail"
SETS = {
    UPSAMPLED: "the pretrained pair with the same seeds, conditions and steps, enlarged by bicubic interpolation",
    UPGRADED: "the upgraded pair",
    CONTROL: "the upgraded pair's base latents with N(0, 1) detail, same decoder",
}
"""Row of the table -> how the set is made."""


def measure_generation(
    sets: Mapping[str, Tensor], real: Tensor, drawn: Mapping[str, Any], seed: int = 0
) -> tuple[list[Measurement], dict[str, dict[int, float]]]:
    """Distances of generated sets to real images.

    Args:
        sets: name (of `SETS`) -> uint8 images [N, 3, S, S].
        real: uint8 images [M, 3, S, S], never trained on.
        drawn: how the sets were drawn (steps, guidance, seeds), for the protocol.
        seed: of patches and projections.

    Returns:
        Measurements (x 1000, lower is closer), and name -> level -> distance.
    """
    statistic = SlicedWasserstein(real.shape[-1], seed=seed)
    reference = statistic.describe(real, [f"real-{index}" for index in range(len(real))])
    measurements, distances = [], {}
    for name, images in sets.items():
        described = statistic.describe(images, [f"generated-{index}" for index in range(len(images))])
        distances[name] = statistic.distance(described, reference)
        for level, value in distances[name].items():
            protocol = {
                "generated": len(images),
                "real": len(real),
                "statistic": "ProGAN: 7x7 patches, 128 an image, each set normalised by itself, 4 x 128 projections",
                "set": SETS[name],
                "drawn": dict(drawn),
                "patch_seed": seed,
                "hardware": hardware(),
            }
            measurements.append(Measurement(GROUP, name, f"{level} px level", value, "x 1e-3", "lower", protocol))
    return measurements, distances
