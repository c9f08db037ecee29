"""What a stage costs, as a report prints it: memory by part, FLOPs, hours on a device."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from davae.core.names import Precision
from davae.evaluate.cost.flops import Flops
from davae.evaluate.cost.memory import Memory, Parameters
from davae.evaluate.gpus import Gpu

UTILISATION = 0.4
"""Share of the peak rate that trainings of large transformers reach; 0.3 to 0.5 are common."""
ASSUMPTIONS = {
    "FLOPs": "matrix products, convolutions and attention, 2 a multiply-add; what gradient checkpointing computes "
    "again and the partial backward passes of adaptive weights count, the optimizer does not",
    "memory": "AdamW has two fp32 moments of every trained parameter, the average a copy of it; activations are the "
    "worst moment of a forward and backward pass with fused attention, counted on fake tensors, with the copies that "
    "CUDA's autocast makes; one process, without the CUDA context, the workspaces of kernels, and what the allocator "
    "cannot use again",
    "hours": f"{UTILISATION:.0%} of the device's dense peak, which small models and batches do not reach; without "
    "previews, evaluation, and waiting for data",
    "image": "without text encoders",
}
"""What every number rests on."""
_GIB = 2**30


@dataclass(frozen=True)
class Cost:
    """What a stage takes of its device, or of each of several.

    Args:
        stage: for people, "tokenizer".
        memory: with `at_once` images.
        at_once: images on a device at once.
        flops: of an image, mean over the stage.
        images: that the stage goes through, on all devices together.
        precision: it computes in.
        parameters: of what is trained, learner by learner; empty where nothing is.
    """

    stage: str
    memory: Memory
    at_once: int
    flops: Flops
    images: int
    precision: Precision
    parameters: Mapping[str, Parameters] = field(default_factory=dict)

    @property
    def total_flops(self) -> int:
        """Of the whole stage."""
        return self.flops.total * self.images

    def hours(self, gpu: Gpu, utilisation: float = UTILISATION, devices: int = 1) -> float:
        """Of the whole stage.

        Raises:
            ValueError: the device does not compute in this precision.
        """
        return hours(self.total_flops, gpu, self.precision, utilisation, devices)

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {gib(size)}" for name, size in self.memory.parts.items())
        flops = readable(self.flops.forward, "FLOP")
        if self.flops.backward:
            flops = f"{flops} forward and {readable(self.flops.backward, 'FLOP')} backward"
        return (
            f"{self.stage}: about {gib(self.memory.total)} for {self.at_once} images at once, most of it "
            f"{self.memory.largest} ({parts}); {flops} an image, {readable(self.total_flops, 'FLOP')} for "
            f"{self.images:,} images"
        )


def hours(flops: float, gpu: Gpu, precision: str, utilisation: float = UTILISATION, devices: int = 1) -> float:
    """Hours that so many FLOPs take.

    Raises:
        ValueError: the device does not compute in this precision.
    """
    return flops / (gpu.peak(precision) * utilisation * devices) / 3600


def readable(number: float, unit: str = "") -> str:
    """ "1.23 T" of 1.23e12, with three digits."""
    for limit, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit:
            return f"{number / limit:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}".rstrip()


def gib(size: int) -> str:
    """ "1.5 GiB" of bytes, or MiB where it is less than a tenth."""
    return f"{size / _GIB:.1f} GiB" if size >= _GIB / 10 else f"{size / 2**20:.1f} MiB"
