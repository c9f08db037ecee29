"""LPIPS v0.1 with VGG16 (Zhang et al. 2018) on a feature stack of our own, which loads the public weights."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

# Widths of VGG16's convs by stage; a max pool stands between stages, and a stage's last ReLU is a tap.
_STAGES: Final = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_LINEAR_KEY: Final = re.compile(r"(?:lin|lins\.)([0-4])\.model\.1\.weight")
_VGG_SOURCE: Final = (
    "vgg16-397923af.pth of the PyTorch model zoo (https://download.pytorch.org/models/vgg16-397923af.pth)"
)
_LINEAR_SOURCE: Final = (
    "vgg.pth of LPIPS v0.1 (lpips/weights/v0.1/vgg.pth in https://github.com/richzhang/PerceptualSimilarity)"
)


class LPIPS(nn.Module):
    """Perceptual distance of image pairs; frozen and always in eval mode. Gradients flow to the images.

    d(x, y) = sum over taps of mean over positions of w . (u(x) - u(y))^2, where u is the features of a tap
    (relu1_2, relu2_2, relu3_3, relu4_3, relu5_3) divided by their length over channels.

    There is no constructor without weights: with random features the number looks right and means nothing.

    Args:
        vgg: torchvision's VGG16 state dict; `features.N.weight`, `features.N.bias`, `classifier.*` ignored.
        linear: five weights [1, channels, 1, 1], named `lin0.model.1.weight` or `lins.0.model.1.weight`, ...
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, vgg: Mapping[str, Tensor], linear: Mapping[str, Tensor]) -> None:
        super().__init__()
        # To ImageNet's mean 0 and deviation 1 from [-1, 1]; constants of the LPIPS repository.
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None], persistent=False)
        with torch.device("meta"):
            self.features = _vgg16_features()
        _load_features(self.features, vgg)
        self.linear = nn.ParameterList(_linear_weights(linear))
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_files(cls, vgg: Path, linear: Path) -> Self:
        """Load the public weights, `.pth` or `.safetensors`.

        Args:
            vgg: vgg16-397923af.pth of the PyTorch model zoo.
            linear: weights/v0.1/vgg.pth of the LPIPS repository.
        """
        return cls(_read(vgg, "VGG16", _VGG_SOURCE), _read(linear, "LPIPS", _LINEAR_SOURCE))

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever the module that holds this one does."""
        return super().train(False)

    def forward(self, images: Tensor, references: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1], twice, sides of at least 16 -> distances [B], float32."""
        _check_images(images, references)
        distances = images.new_zeros(images.shape[0], dtype=torch.float32)
        # Two passes instead of one over both: references that need no gradient then keep no activations.
        for weight, ours, theirs in zip(self.linear, self._taps(images), self._taps(references), strict=True):
            difference = _unit_length(ours) - _unit_length(theirs)
            distances = distances + (difference.square().mean(dim=(2, 3)) * weight).sum(dim=1)
        return distances

    def _taps(self, images: Tensor) -> Iterator[Tensor]:
        hidden_states = (images - self.shift) / self.scale
        for stage in self.features:
            hidden_states = stage(hidden_states)
            yield hidden_states


def _vgg16_features() -> nn.ModuleList:
    stages, in_channels = nn.ModuleList(), 3
    for index, widths in enumerate(_STAGES):
        layers: list[nn.Module] = [nn.MaxPool2d(2)] if index else []
        for width in widths:
            layers += [nn.Conv2d(in_channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            in_channels = width
        stages.append(nn.Sequential(*layers))
    return stages


def _load_features(stages: nn.ModuleList, state: Mapping[str, Tensor]) -> None:
    # torchvision numbers convs, ReLUs and pools in one sequence, as ours follow each other.
    layers = [layer for stage in stages for layer in stage]
    convs = {f"features.{index}": layer for index, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)}
    wanted = {f"{name}.{part}": tensor for name, conv in convs.items() for part, tensor in conv.named_parameters()}
    given = {key: tensor for key, tensor in state.items() if not key.startswith("classifier.")}
    _account("VGG16", {key: tuple(tensor.shape) for key, tensor in wanted.items()}, given, _VGG_SOURCE)
    for name, conv in convs.items():
        conv.load_state_dict(
            {part: given[f"{name}.{part}"].float() for part in ("weight", "bias")}, strict=True, assign=True
        )


def _linear_weights(state: Mapping[str, Tensor]) -> list[nn.Parameter]:
    given: dict[str, Tensor] = {}
    for key, tensor in state.items():
        match = _LINEAR_KEY.fullmatch(key)
        name = f"lin{match[1]}.model.1.weight" if match else key
        if name in given:
            raise ValueError(f"LPIPS weights give {name} twice, as {key} too. Use {_LINEAR_SOURCE}.")
        given[name] = tensor
    wanted = {f"lin{tap}.model.1.weight": (1, widths[-1], 1, 1) for tap, widths in enumerate(_STAGES)}
    _account("LPIPS", wanted, given, _LINEAR_SOURCE)
    return [nn.Parameter(given[name].float().flatten(), requires_grad=False) for name in wanted]


def _account(what: str, wanted: Mapping[str, tuple[int, ...]], given: Mapping[str, Tensor], source: str) -> None:
    """Every tensor is known, present and of its shape, or the weights are refused."""
    missing = sorted(wanted.keys() - given.keys())
    unknown = sorted(given.keys() - wanted.keys())
    shapes = [
        f"{key} {tuple(given[key].shape)} instead of {shape}"
        for key, shape in wanted.items()
        if key in given and tuple(given[key].shape) != shape
    ]
    if missing or unknown or shapes:
        raise ValueError(
            f"These are not the {what} weights: missing {missing[:4]} ({len(missing)} in all), "
            f"unknown {unknown[:4]} ({len(unknown)} in all), other shapes {shapes[:4]} ({len(shapes)}). "
            f"Use {source}."
        )


def _read(path: Path, what: str, source: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(
            f"The perceptual loss lacks the {what} weights: no file at {path}. Download {source} to that path."
        )
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _check_images(images: Tensor, references: Tensor) -> None:
    is_batch = images.ndim == 4 and images.shape[1] == 3 and min(images.shape[2:]) >= 16
    if not is_batch or images.shape != references.shape:
        raise ValueError(
            f"LPIPS cannot compare these images: got {tuple(images.shape)} and {tuple(references.shape)}, "
            "allowed two of the same shape [B, 3, H, W], H and W at least 16. Resize or crop them first."
        )


def _unit_length(features: Tensor) -> Tensor:
    """Divide by the length over channels, in float32: close images differ by less than bfloat16 resolves."""
    features = features.float()
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + 1e-10)
