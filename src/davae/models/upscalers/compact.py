"""SRVGGNetCompact, Real-ESRGAN's small network: plain convolutions, and one pixel shuffle at the end."""

import torch.nn.functional as F
from torch import Tensor, nn

from davae.models.upscalers.network import UpscalingNetwork


class SRVGGNetCompact(UpscalingNetwork):
    """Predicts what is added to the enlarged image (nearest neighbour). Module names are those of the files.

    Args:
        convolutions: between the first and the last; realesr-general-x4v3 has 32, realesr-animevideov3 16.
        features: channels between them; 64.
        scale: of the result.
    """

    def __init__(self, convolutions: int, features: int, scale: int) -> None:
        super().__init__()
        self.scale, self._convolutions = scale, convolutions
        layers: list[nn.Module] = [nn.Conv2d(3, features, 3, padding=1), nn.PReLU(features)]
        for _ in range(convolutions):
            layers += [nn.Conv2d(features, features, 3, padding=1), nn.PReLU(features)]
        self.body = nn.Sequential(*layers, nn.Conv2d(features, 3 * scale**2, 3, padding=1))

    @property
    def geometry(self) -> str:
        """See `UpscalingNetwork`."""
        features = self.body[0].out_channels
        return f"SRVGGNetCompact, {self._convolutions} convolutions, {features} features, x{self.scale}"

    def forward(self, images: Tensor) -> Tensor:
        """See `UpscalingNetwork`."""
        detail = F.pixel_shuffle(self.body(images), self.scale)
        return detail + F.interpolate(images, scale_factor=self.scale, mode="nearest")
