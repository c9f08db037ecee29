"""The metrics that a run is judged by: another one is a file of its own and a line here."""

from davae.evaluate.metric import PairedMetric, SetMetric
from davae.evaluate.similarity import PSNR, SSIM
from davae.evaluate.swd import SWD

PAIRED: tuple[PairedMetric, ...] = (PSNR, SSIM)
"""Of reconstructions, in the order of the columns; those that need weights are added where these are at hand."""
GENERATED: tuple[SetMetric, ...] = (SWD,)
"""Of generated sets, in the order of the tables."""
