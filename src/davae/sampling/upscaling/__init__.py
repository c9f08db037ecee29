"""The second stage of a cascade: images at a larger size, by a filter, a network, or another program."""

from davae.sampling.upscaling.spec import SPECS, open_upscaler
from davae.sampling.upscaling.upscaler import Upscaler, refusal

__all__ = ["SPECS", "Upscaler", "open_upscaler", "refusal"]
