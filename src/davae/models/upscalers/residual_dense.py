"""The residual dense network of ISR and of UpscalerJS's esrgan-slim: a few hundred thousand weights, fit for a CPU.

Zhang et al. 2018 (RDN). Layer names are those of its Keras files.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davae.models.upscalers.network import UpscalingNetwork

_PEAK = 255.0  # esrgan-slim was trained on this range


class ResidualDenseNet(UpscalingNetwork):
    """The whole network.

    Args:
        blocks: dense blocks; esrgan-slim has 2.
        convolutions: of a block; esrgan-slim has 1.
        growth: channels that a convolution of a block adds; 4.
        features: channels between blocks; 64.
        scale: of the result.
    """

    def __init__(self, blocks: int, convolutions: int, growth: int, features: int, scale: int) -> None:
        super().__init__()
        self.scale, self._blocks, self._convolutions = scale, blocks, convolutions
        shapes = {"F_m1": (3, features, 3), "F_0": (features, features, 3)}
        for block in range(1, blocks + 1):
            for index in range(convolutions):
                shapes[f"F_{block}_{index + 1}"] = (features + index * growth, growth, 3)
            shapes[f"LFF_{block}"] = (features + convolutions * growth, features, 1)
        shapes |= {"GFF_1": (blocks * features, features, 1), "GFF_2": (features, features, 3)}
        shapes |= {"UPN1": (features, 64, 5), "UPN2": (64, 32, 3), "UPN3": (32, 3 * scale**2, 3)}
        shapes |= {"SR": (3 * scale**2, 3, 3)}
        self.layers = nn.ModuleDict(
            {
                name: nn.Conv2d(inputs, outputs, side, padding=side // 2)
                for name, (inputs, outputs, side) in shapes.items()
            }
        )

    @property
    def geometry(self) -> str:
        """See `UpscalingNetwork`."""
        return f"ResidualDenseNet, {self._blocks} blocks of {self._convolutions}, x{self.scale}"

    def forward(self, images: Tensor) -> Tensor:
        """See `UpscalingNetwork`."""
        layer = self.layers
        shallow = layer["F_m1"](images * _PEAK)
        features = layer["F_0"](shallow)
        blocks = []
        for block in range(1, self._blocks + 1):
            seen = features
            for index in range(1, self._convolutions + 1):
                seen = torch.cat([seen, F.relu(layer[f"F_{block}_{index}"](seen))], dim=1)
            features = layer[f"LFF_{block}"](seen) + features
            blocks.append(features)
        fused = layer["GFF_2"](layer["GFF_1"](torch.cat(blocks, dim=1))) + shallow
        fine = layer["UPN3"](F.relu(layer["UPN2"](F.relu(layer["UPN1"](fused)))))
        out: Tensor = layer["SR"](F.interpolate(fine, scale_factor=self.scale, mode="nearest"))
        return out / _PEAK
