"""Distances of images in their fine structure: what L1 leaves blurred, without the weights of a network.

Both are mean absolute errors of a linear transform of images [B, C, H, W], of any range, and 0 for equal images. An
error that looks like white noise has about L1's size in either; a weight of 1 beside L1 is a weight that counts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def laplacian_pyramid(images: Tensor, levels: int) -> list[Tensor]:
    """The bands of a Laplacian pyramid, finest first: band j is [B, C, H / 2^j, W / 2^j], sides rounded down.

    With G_0 the images and G_(j+1) = reduce(G_j), band j is G_j - expand(G_(j+1)). To expand is to enlarge
    bilinearly; to reduce is its transpose, the filter (1, 3, 3, 1) / 8 in both directions at every second position.
    What is left in the end, G_levels, is not among them.

    Raises:
        ValueError: a side is below 2^levels.
    """
    if min(images.shape[-2:]) < 2**levels:
        raise ValueError(
            f"A Laplacian pyramid of {levels} levels needs sides of {2**levels} px and more; got "
            f"{images.shape[-1]} x {images.shape[-2]}. Take fewer levels."
        )
    bands = []
    for _ in range(levels):
        height, width = images.shape[-2:]
        reduced = F.interpolate(images, (height // 2, width // 2), mode="bilinear", antialias=True)
        bands.append(images - F.interpolate(reduced, (height, width), mode="bilinear"))
        images = reduced
    return bands


def pyramid_distance(images: Tensor, references: Tensor, levels: int) -> Tensor:
    """Sum over the bands of the mean absolute error, a scalar (Bojanowski et al. 2018, GLO).

    They weigh the summed error of band j by 4^j, which makes every band's mean count alike: band j has 4^j times
    fewer elements. The blurred rest is left to L1.
    """
    bands = laplacian_pyramid(images - references, levels)  # linear: the difference of two pyramids
    return torch.stack([band.abs().mean() for band in bands]).sum()


def spectral_distance(images: Tensor, references: Tensor, focus: float = 1.0) -> Tensor:
    """Mean over frequencies of w |F(images - references)|, a scalar; F is the orthonormal 2D Fourier transform.

    w = (|F| / max |F|)^focus, the largest taken over the frequencies of an image's channel, weighs what is worst
    (Jiang et al. 2021, focal frequency loss); no gradient flows through it. Theirs has the square of |F|, which is
    far below L1. A focus of 0 pulls at every frequency alike, however small its error (Cho et al. 2021).
    """
    height, width = images.shape[-2:]
    errors = torch.fft.rfft2(images - references, norm="ortho").abs()  # [B, C, H, W // 2 + 1]
    if focus > 0:
        largest = errors.detach().amax(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(errors.dtype).tiny)
        errors = errors * (errors.detach() / largest) ** focus
    columns = torch.full((width // 2 + 1,), 2.0)  # the columns that are left out mirror these
    columns[0] = 1
    columns[-1] = 1 + width % 2
    return (errors * columns.to(errors)).sum(dim=(-2, -1)).mean() / (height * width)
