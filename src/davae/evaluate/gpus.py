"""What GPUs promise: dense peak rates of NVIDIA's data sheets and papers, and memory as CUDA reports it."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One device.

    Args:
        name: as people write it.
        bf16_tflops: dense bfloat16 on tensor cores with fp32 accumulation, TFLOP/s. None: no such units.
        fp32_tflops: fp32 without TF32, which PyTorch computes matrices with by default, TFLOP/s.
        memory: bytes that programs see.
    """

    name: str
    bf16_tflops: float | None
    fp32_tflops: float
    memory: int

    def computes(self, precision: str) -> bool:
        """Whether it computes in "bf16" or "fp32"."""
        return precision == "fp32" or self.bf16_tflops is not None

    def peak(self, precision: str) -> float:
        """FLOP/s in "bf16" or "fp32".

        Raises:
            ValueError: the device does not compute in this precision.
        """
        rate = self.bf16_tflops if precision == "bf16" else self.fp32_tflops
        if rate is None:
            raise ValueError(f"A {self.name} has no bfloat16 units. Set precision: fp32, or take a newer GPU.")
        return rate * 1e12


_GIB = 2**30
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("T4", None, 8.1, int(14.6 * _GIB)),
        Gpu("L4", 121, 30.3, int(22.0 * _GIB)),
        Gpu("RTX 3090", 71, 35.6, int(23.6 * _GIB)),
        Gpu("RTX 4090", 165, 82.6, int(23.5 * _GIB)),
        Gpu("RTX 5090", 209, 104.8, int(31.4 * _GIB)),
        Gpu("A100 40GB", 312, 19.5, int(39.4 * _GIB)),
        Gpu("L40S", 362, 91.6, int(44.4 * _GIB)),
        Gpu("H100 PCIe", 756, 51.0, int(79.1 * _GIB)),
        Gpu("H100", 989, 67.0, int(79.1 * _GIB)),
        Gpu("A100", 312, 19.5, int(79.2 * _GIB)),
        Gpu("H200", 989, 67.0, int(139.8 * _GIB)),
        Gpu("B200", 2250, 75.0, int(178.4 * _GIB)),
    )
}
"""By name, the smaller memories first. H100 is the SXM card, A100 the one of 80 GB."""


def named_gpu(name: str) -> Gpu:
    """A device by its name, spaces, dashes and case ignored: "h100-pcie" is "H100 PCIe".

    Raises:
        ValueError: it is not in the table.
    """
    wanted = _plain(name)
    for gpu in GPUS.values():
        if _plain(gpu.name) == wanted:
            return gpu
    raise ValueError(f"GPU {name!r} is not in the table; known are {', '.join(GPUS)}.")


def gpu_like(device_name: str) -> Gpu | None:
    """The device that CUDA calls "NVIDIA H100 80GB HBM3", say; None where it is not in the table."""
    words = set(re.split(r"[^a-z0-9]+", device_name.lower()))
    fitting = [gpu for gpu in GPUS.values() if words.issuperset(gpu.name.lower().split())]
    return max(fitting, key=lambda gpu: len(gpu.name), default=None)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
