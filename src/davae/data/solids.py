"""`solids`: a procedural data set, rendered on the fly at any resolution from a seed.

One shaded solid (sphere, box or pyramid) in one of six materials stands before a gradient under a moving
light: 18 classes, a caption each. Image i of a seed is the same scene at every resolution. Materials carry
lines about two pixels wide at 128 px, which a 64 px rendering cannot hold: work for detail channels.
"""

import colorsys
import math
import re
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from davae.core.files import DIGEST_SIZE, text_digest
from davae.core.randomness import generator
from davae.data.buckets import Size

SHAPES = ("sphere", "box", "pyramid")
MATERIALS = ("plain", "striped", "checked", "dotted", "ringed", "marbled")
HUES = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")

ATTRIBUTES = {"shape": SHAPES, "material": MATERIALS, "colour": HUES}
"""What a caption says of a solid -> the words that it may say."""

_NUM_DRAWS = 11


class SolidsSource:
    """An `ImageSource` of `count` rendered scenes.

    Args:
        count: how many scenes the set has.
        seed: of the set; another seed gives other scenes.
    """

    def __init__(self, count: int, seed: int = 0) -> None:
        if count < 1:
            raise ValueError(f"The solids set needs at least one image; got count {count}.")
        self.count, self.seed = count, seed
        self.class_names = tuple(f"{material} {shape}" for shape in SHAPES for material in MATERIALS)
        self.ids = [f"solid-{seed}-{index}" for index in range(count)]
        self.labels = [index % len(self.class_names) for index in range(count)]
        self.sizes: Sequence[Size] | None = None
        self.skipped: tuple[tuple[str, str], ...] = ()
        self.fingerprint = self.labelled_fingerprint = f"solids-1-{seed}-{count}"

    def __len__(self) -> int:
        return self.count

    @cached_property
    def captions(self) -> list[str]:
        """A sentence for every scene, for example "a striped red box"."""
        return [self._caption(index) for index in range(self.count)]

    @cached_property
    def all_captions(self) -> list[tuple[str, ...]]:
        """See `ImageSource`."""
        return [(caption,) for caption in self.captions]

    @cached_property
    def identities(self) -> NDArray[np.uint8]:
        """See `ImageSource`."""
        joined = b"".join(text_digest(f"solids-1 {name}") for name in self.ids)
        return np.frombuffer(joined, np.uint8).reshape(-1, DIGEST_SIZE)

    def images(self, indices: Sequence[int], size: int | Size) -> Tensor:
        """Render the scenes `indices`: uint8 [N, 3, size, size], or the centre (height, width) of a larger square."""
        if not isinstance(size, int):
            height, width = size
            side = max(size)
            top, left = (side - height) // 2, (side - width) // 2
            return self.images(indices, side)[:, :, top : top + height, left : left + width]
        draws = torch.stack([self._draws(index) for index in indices])
        classes = [self.labels[index] for index in indices]
        result = torch.empty(len(indices), 3, size, size, dtype=torch.uint8)
        for label in set(classes):
            rows = [row for row, other in enumerate(classes) if other == label]
            shape, material = divmod(label, len(MATERIALS))
            rendered = render(draws[rows], SHAPES[shape], MATERIALS[material], size)
            result[rows] = (rendered * 255 + 0.5).to(torch.uint8)
        return result

    def _draws(self, index: int) -> Tensor:
        return torch.rand(_NUM_DRAWS, generator=generator(self.seed, "solids", index))

    def _caption(self, index: int) -> str:
        shape, material = divmod(self.labels[index], len(MATERIALS))
        hue = HUES[int(self._draws(index)[0] * len(HUES)) % len(HUES)]
        return f"a {MATERIALS[material]} {hue} {SHAPES[shape]}"


def attributes_of(text: str) -> dict[str, int]:
    """What a caption or a class name says of a solid: attribute -> number of its word in `ATTRIBUTES`.

    "a striped red box" says all three, "striped box" no colour. Other words count for nothing.

    Raises:
        ValueError: it says nothing of a solid, or names two words of an attribute.
    """
    said = re.findall(r"[a-z]+", text.lower())
    found = {name: [word for word in words if word in said] for name, words in ATTRIBUTES.items()}
    if not any(found.values()) or any(len(words) > 1 for words in found.values()):
        raise ValueError(
            f"Cannot tell which solid is meant; got {text!r}, allowed is one word each of: "
            f"{'; '.join(', '.join(words) for words in ATTRIBUTES.values())}, as in 'a striped red box'."
        )
    return {name: ATTRIBUTES[name].index(words[0]) for name, words in found.items() if words}


def render(draws: Tensor, shape: str, material: str, size: int) -> Tensor:
    """Render scenes of one class from their uniform draws [N, 11]: float [N, 3, size, size] in [0, 1].

    Orthographic rays along -z meet the solid; the material is a function of the point in the solid's own
    coordinates, so a pattern runs through it like grain through wood.
    """
    u = draws.unbind(1)
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    screen_y, screen_x = -axis[:, None].expand(size, size), axis.expand(size, size)

    radius = _column(0.56 + 0.16 * u[1])
    x = (screen_x - _column(0.3 * (u[2] - 0.5))) / radius  # (N, H, W), solid units
    y = (screen_y - _column(0.3 * (u[3] - 0.5))) / radius
    rotation = _rotation(yaw=(u[4] - 0.5) * 1.5, pitch=0.35 + 0.25 * u[5])
    near, thickness, normal = _sphere(x, y) if shape == "sphere" else _polytope(x, y, rotation, _PLANES[shape])

    point = torch.stack([x, y, near], dim=1)  # (N, 3, H, W), view coordinates
    grain, groove = _material(material, torch.einsum("nij,nihw->njhw", rotation, point))
    light = _directions(u[6] * 2 - 1, 0.35 + 0.5 * u[7])
    diffuse = _dot(normal, light).clamp_min(0)
    half = torch.nn.functional.normalize(light + torch.tensor([0.0, 0.0, 1.0]), dim=1)
    highlight = _dot(normal, half).clamp_min(0).pow(40)

    first, second = _colour(u[0], 0.75, 0.9), _colour(u[0] + 0.12 + 0.2 * u[8], 0.55, 0.55)
    surface = first[..., None, None] + (second - first)[..., None, None] * grain[:, None]
    surface = surface * (1 - 0.6 * groove[:, None])
    surface = surface * (0.36 + 0.7 * diffuse)[:, None] + 0.3 * highlight[:, None]

    backdrop = _backdrop(u[9], u[10], screen_y)
    # The silhouette is one pixel soft: rays that cross little of the solid cover little of the pixel.
    cover = (thickness * radius * size / 8).clamp(0, 1)[:, None]
    return (backdrop + (surface - backdrop) * cover).clamp(0, 1)


def _column(values: Tensor) -> Tensor:
    return values[:, None, None]


def _dot(field: Tensor, vector: Tensor) -> Tensor:
    """(N, 3, H, W) . (N, 3) -> (N, H, W). Not einsum: its rounding would depend on N, and an image on its batch."""
    return (field * vector[..., None, None]).sum(dim=1)


def _directions(side: Tensor, up: Tensor) -> Tensor:
    vectors = torch.stack([side, up, torch.full_like(side, 0.8)], dim=1)
    return torch.nn.functional.normalize(vectors, dim=1)


def _rotation(yaw: Tensor, pitch: Tensor) -> Tensor:
    """[N, 3, 3], rows: view coordinates of a solid's axes are the columns' images (solid = R^T view)."""
    zero, one = torch.zeros_like(yaw), torch.ones_like(yaw)
    around = torch.stack([yaw.cos(), zero, yaw.sin(), zero, one, zero, -yaw.sin(), zero, yaw.cos()], dim=1)
    tilt = torch.stack([one, zero, zero, zero, pitch.cos(), -pitch.sin(), zero, pitch.sin(), pitch.cos()], dim=1)
    return tilt.unflatten(1, (3, 3)) @ around.unflatten(1, (3, 3))


def _sphere(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    near = (1 - x.square() - y.square()).clamp_min(0).sqrt()
    return near, 2 * near, torch.stack([x, y, near], dim=1)


_PLANES = {
    "box": (
        torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]]),
        torch.full((6,), 0.68),
    ),
    "pyramid": (
        torch.tensor([[0.85, 0.526, 0], [-0.85, 0.526, 0], [0, 0.526, 0.85], [0, 0.526, -0.85], [0, -1, 0]]),
        torch.tensor([0.45, 0.45, 0.45, 0.45, 0.62]),
    ),
}


def _polytope(x: Tensor, y: Tensor, rotation: Tensor, planes: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Clip the ray (x, y, -inf..inf) by half-spaces n.p <= d: nearest depth, chord length, normal there."""
    # No matrix product here either, see _dot.
    normals = (rotation[:, None] * planes[0][:, None]).sum(dim=3)  # (N, P, 3), view coordinates
    slope = normals[:, :, 2, None, None]
    room = (
        planes[1][:, None, None]
        - normals[:, :, 0, None, None] * x[:, None]
        - normals[:, :, 1, None, None] * y[:, None]
    )
    depth = room / torch.where(slope.abs() < 1e-4, torch.full_like(slope, 1e-4), slope)
    towards = slope > 0
    near, face = torch.where(towards, depth, torch.inf).min(dim=1)
    far = torch.where(towards, -torch.inf, depth).max(dim=1).values
    chord = (near - far).clamp_min(0)
    normal = torch.gather(normals, 1, face.flatten(1)[..., None].expand(-1, -1, 3))
    return near.clamp(-2, 2), chord, normal.transpose(1, 2).unflatten(2, face.shape[1:])


def _material(material: str, point: Tensor) -> tuple[Tensor, Tensor]:
    """(grain, groove) of points (N, 3, H, W) in solid coordinates, each (N, H, W) in [0, 1].

    Grain mixes two colours over some ten pixels at 128 px; grooves are dark lines about two pixels wide. A
    material is the same block of matter in every scene: only pose, size, light and colours differ.
    """
    x, y, z = point.unbind(1)
    if material == "plain":
        return torch.zeros_like(x), torch.zeros_like(x)
    if material == "striped":
        wave = y / 0.46 + 0.1
        return _square(wave), _line(2 * wave, 0.23)
    if material == "checked":
        columns, rows, layers = x / 0.7 + 0.1, y / 0.7 + 0.25, z / 0.7 + 0.1
        grooves = torch.maximum(_line(2 * columns, 0.35), _line(2 * rows, 0.35))
        return (_sign(columns) * _sign(rows) * _sign(layers) + 1) / 2, grooves
    if material == "dotted":
        # A layer of dots lies in the faces that look at the camera.
        distance = _offset((point - 0.68) / 0.47).square().sum(dim=1).sqrt()
        return torch.sigmoid((0.44 - distance) * 40), _band((distance - 0.44) * 0.47)
    if material == "ringed":
        wave = (x.square() + (y - 0.3).square() + 0.25 * z.square()).sqrt() / 0.38 + 0.1
        return (wave % 1), _line(wave, 0.38)
    warp = 0.25 * torch.sin(4 * y + 0.6) + 0.15 * torch.sin(6 * z + 3 * x) + 0.08 * torch.sin(9 * x - 5 * y)
    vein = (x + 0.5 * y + warp) / 0.7 + 0.1
    return (0.5 + 0.5 * torch.sin(2 * math.pi * vein)).square(), _line(vein, 0.7)


def _offset(wave: Tensor) -> Tensor:
    """Distance to the nearest whole number, signed."""
    return (wave + 0.5) % 1 - 0.5


def _square(wave: Tensor) -> Tensor:
    return torch.sigmoid(10 * torch.sin(2 * math.pi * wave))


def _sign(wave: Tensor) -> Tensor:
    return torch.tanh(6 * torch.sin(2 * math.pi * wave))


def _line(wave: Tensor, period: float) -> Tensor:
    """A thin line at every whole number of `wave`, its width a constant length of the solid."""
    return _band(_offset(wave) * period)


def _band(distance: Tensor) -> Tensor:
    return torch.exp(-(distance / 0.02).square())


def _colour(hue: Tensor, saturation: float, value: float) -> Tensor:
    return torch.tensor([colorsys.hsv_to_rgb(float(h) % 1, saturation, value) for h in hue])


def _backdrop(hue: Tensor, level: Tensor, screen_y: Tensor) -> Tensor:
    top, bottom = _colour(hue, 0.25, 0.85), _colour(hue + 0.1, 0.3, 0.45)
    ramp = (screen_y + 1) / 2
    tint = bottom[..., None, None] + (top - bottom)[..., None, None] * ramp
    return tint * (0.6 + 0.4 * level)[:, None, None, None]
