"""LPIPS v0.1 with VGG16 (Zhang et al. 2018) on a feature stack of our own, which loads the public weights."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, Self

import torch
from torch import Tensor, nn

from davae.models.weights import LPIPS_LINEAR, VGG16, PublicFile, load_weights

# Widths of VGG16's convs by stage; a max pool stands between stages, and a stage's last ReLU is a tap.
_STAGES: Final = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_LINEAR_KEY: Final = re.compile(r"(?:lin|lins\.)([0-4])\.model\.1\.weight")


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
    def from_pretrained(
        cls,
        vgg: Path | None = None,
        linear: Path | None = None,
        allow_download: bool = False,
        say: Callable[[str], None] | None = None,
    ) -> Self:
        """Load the public weights; see `davae.models.weights` for where they are looked for.

        Args:
            vgg: None looks for the public file; else its path (`.pth`, checked by its checksum), or the path of a
                `.safetensors` with the same keys and shapes.
            linear: as `vgg`, for the linear layers.
            allow_download: whether a public file may be fetched where no copy is found.
            say: is told of a download before it starts.

        Raises:
            FileNotFoundError: a file is not there; the message says what to fetch, and where to put it.
            ValueError: a file holds something else.
            ConnectionError: a download failed.
        """
        return cls(*load_weights({VGG16: vgg, LPIPS_LINEAR: linear}, allow_download, say))

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
    layers = [layer for stage in stages for layer in stage.children()]
    convs = {f"features.{index}": layer for index, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)}
    expected = {f"{name}.{part}": tensor for name, conv in convs.items() for part, tensor in conv.named_parameters()}
    given = {key: tensor for key, tensor in state.items() if not key.startswith("classifier.")}
    _account(VGG16, {key: tuple(tensor.shape) for key, tensor in expected.items()}, given)
    for name, conv in convs.items():
        # A tenth to a fifth faster, whatever the images' own format.
        weight = given[f"{name}.weight"].float().contiguous(memory_format=torch.channels_last)
        conv.load_state_dict({"weight": weight, "bias": given[f"{name}.bias"].float()}, strict=True, assign=True)


def _linear_weights(state: Mapping[str, Tensor]) -> list[nn.Parameter]:
    given: dict[str, Tensor] = {}
    for key, tensor in state.items():
        match = _LINEAR_KEY.fullmatch(key)
        name = f"lin{match[1]}.model.1.weight" if match else key
        if name in given:
            raise ValueError(f"LPIPS weights give {name} twice, as {key} too. Use {LPIPS_LINEAR.url}.")
        given[name] = tensor
    expected = {f"lin{tap}.model.1.weight": (1, widths[-1], 1, 1) for tap, widths in enumerate(_STAGES)}
    _account(LPIPS_LINEAR, expected, given)
    return [nn.Parameter(given[name].float().flatten(), requires_grad=False) for name in expected]


def _account(file: PublicFile, expected: Mapping[str, tuple[int, ...]], given: Mapping[str, Tensor]) -> None:
    """Every tensor is known, present and of its shape, or the weights are refused."""
    missing = sorted(expected.keys() - given.keys())
    unknown = sorted(given.keys() - expected.keys())
    shapes = [
        f"{key} {tuple(given[key].shape)} instead of {shape}"
        for key, shape in expected.items()
        if key in given and tuple(given[key].shape) != shape
    ]
    if missing or unknown or shapes:
        # Nothing known at all, and keys as only these two files have them: it is the other one.
        is_other = not expected.keys() & given.keys() and any(key.startswith(("features.", "lin")) for key in given)
        hint = " The files for vgg and linear seem to be swapped." if is_other else ""
        raise ValueError(
            f"These are not the weights of the {file.title}: missing {missing[:4]} ({len(missing)} in all), "
            f"unknown {unknown[:4]} ({len(unknown)} in all), other shapes {shapes[:4]} ({len(shapes)}).{hint} "
            f"Use {file.url}."
        )


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
    # A product with the inverse: its gradient reads these large maps fewer times than that of a quotient.
    return features * (torch.linalg.vector_norm(features, dim=1, keepdim=True) + 1e-10).reciprocal()
