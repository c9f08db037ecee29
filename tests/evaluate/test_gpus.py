"""Devices and published models by the names that people and CUDA give them."""

import pytest

from davae.backbones.public import PUBLIC, public_model
from davae.evaluate.gpus import GPUS, gpu_like, named_gpu


def test_devices_by_name() -> None:
    assert named_gpu("h100-pcie") is GPUS["H100 PCIe"]
    with pytest.raises(ValueError, match="known are T4, L4"):
        named_gpu("GeForce 256")
    found = {
        "NVIDIA H100 80GB HBM3": "H100",
        "NVIDIA H100 PCIe": "H100 PCIe",
        "NVIDIA GeForce RTX 4090": "RTX 4090",
        "NVIDIA L40S": "L40S",
        "NVIDIA A100-SXM4-40GB": "A100 40GB",
        "NVIDIA A100-SXM4-80GB": "A100",
    }
    for reported, name in found.items():
        assert gpu_like(reported) is GPUS[name], reported
    assert gpu_like("Quadro K600") is None


def test_published_models_by_their_names_on_the_hub() -> None:
    assert public_model("stabilityai/stable-diffusion-3.5-medium") == "SD3.5-Medium"
    assert public_model("LightningDiT-XL/1") == "LightningDiT-XL/1"
    assert public_model("somebody/else") is None
    assert sum(weight.numel() for weight in PUBLIC["SD3-Medium"].build().parameters()) == 2_028_328_000
