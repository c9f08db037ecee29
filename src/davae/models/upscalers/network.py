"""What is asked of a network that enlarges images."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class UpscalingNetwork(nn.Module, ABC):
    """Images [B, 3, h, w] in [0, 1] to [B, 3, scale * h, scale * w], which may overshoot that range."""

    scale: int
    multiple: int = 1
    """Pixels that the sides of its input have to be a multiple of."""

    @property
    @abstractmethod
    def geometry(self) -> str:
        """Its class and sizes in a phrase."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
