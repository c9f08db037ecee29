"""Enlarging by what spandrel knows: dozens of architectures, where somebody has installed it.

It is no dependency: it brings torchvision, which breaks diffusers where its build does not match torch's.
"""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch

from davae.convert.unpickle import read_content
from davae.core.files import file_sha256
from davae.core.precision import dtype_name
from davae.sampling.upscaling.network import NetworkUpscaler


def open_spandrel(path: Path, device: torch.device, dtype: torch.dtype) -> NetworkUpscaler:
    """An `Upscaler` by a network of spandrel's.

    Raises:
        ValueError: spandrel is not installed or does not know the file, or the network makes something other than
            larger RGB images of RGB images.
    """
    if find_spec("spandrel") is None:
        raise ValueError(
            f"spandrel:{path} needs spandrel, which is not installed: 'pip install spandrel' brings it, and "
            f"torchvision with it. Files of RRDBNet and SRVGGNetCompact need nothing: esrgan:{path}."
        )
    content = dict(read_content(path))  # by our own reader, so that no other one unpickles it
    spandrel = import_module("spandrel")
    try:
        found = spandrel.ModelLoader(device=device).load_from_state_dict(content)
    except spandrel.UnsupportedModelError:
        raise ValueError(f"{path} holds no network that spandrel {spandrel.__version__} knows.") from None
    if not isinstance(found, spandrel.ImageModelDescriptor) or (found.input_channels, found.output_channels) != (
        3,
        3,
    ):
        raise ValueError(f"{path} holds a {found.architecture.name} that does not make RGB images of RGB images.")
    if found.scale < 2:
        raise ValueError(f"{path} holds a {found.architecture.name} of scale {found.scale}: it enlarges nothing.")
    try:
        model = found.to(device=device, dtype=dtype).eval()
    except spandrel.UnsupportedDtypeError:
        name = dtype_name(dtype)
        raise ValueError(f"The {found.architecture.name} in {path} cannot compute in {name}. Take fp32.") from None
    about = {
        "network": f"{found.architecture.name}, x{found.scale}",
        "spandrel": spandrel.__version__,
        "sha256": {path.name: file_sha256(path)},
    }
    return NetworkUpscaler(
        name=f"{path.stem} ({found.architecture.name})",
        network=lambda images: torch.cat([model(image) for image in images.split(1)]),  # it takes one at a time
        scale=found.scale,
        about=about,
        device=device,
        dtype=dtype,
    )
