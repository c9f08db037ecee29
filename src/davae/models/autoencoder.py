"""`AutoencoderDA`: a pretrained autoencoder with detail channels, as an ordinary diffusers autoencoder.

The latent of an image is the base autoencoder's own latent of the image made s times smaller, followed by D
detail channels of the full image on the same grid. One decoder makes the full image of both.
"""

import copy
import math
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal, Self, overload

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import AutoencoderMixin, DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from davae.core.layout import LatentLayout
from davae.core.scaling import LatentScaling
from davae.models.bases import STRUCTURED, BaseFamily, build_base, family_of, weight_of
from davae.models.blocks import DetailDownBlock, DetailUpBlock
from davae.models.declared_scaling import scaling_of
from davae.models.diffusers_model import DiffusersModel, apply_forward_hook, register_to_config
from davae.models.inherit import constructor_arguments, detail_affine, extended_norm, inherited_scaling, load_trunk
from davae.models.instead import instead_of
from davae.models.plain import expect_plain, is_outline
from davae.models.posterior import LOGVAR_RANGE, StructuredOutput, StructuredPosterior
from davae.models.tiling import run_tiled
from davae.models.warm_start import warm_start


class AutoencoderDA(DiffusersModel, AutoencoderMixin):  # type: ignore[misc]  # see DiffusersModel
    """Detail-aligned autoencoder over a frozen base autoencoder. Make one with `from_base`.

    `encode(x).latent_dist` and `decode(z).sample` speak the base's latent convention: the first C channels are
    the base's raw latent, the detail channels are stored so that the pair's scaling formula gives them mean 0
    and variance 1 (once `calibrate` has measured them).

    Args:
        base_class: diffusers class of the base autoencoder.
        base_config: its config.
        scale: s, image sides a base pixel stands for.
        detail_channels: D.
        clamp_base_image: whether the downsampled image is clamped to [-1, 1] (the reference's text-to-image
            branch does, its ImageNet branch does not).
        base_units: units of the base latent inside the decoder and as the target of the alignment: "raw", or
            "scaled" by the base's own statistics (the reference's text-to-image branch).
        decoder_order: order of the parts inside the decoder; "detail_first" is there for the reference's
            text-to-image checkpoints. The latent that `encode` emits is base first in either case.
        detail_mean: raw mean of each detail channel; None before calibration.
        detail_std: raw standard deviation of each detail channel; None before calibration.
        in_channels: of the image.
        out_channels: of the image.
        latent_channels: C + D; derived.
        block_out_channels: one entry more than the base per doubling, because pipelines read the compression
            off its length; derived.
        encoder_block_out_channels: the same under the name that SANA's pipelines read, over a base that has it;
            derived.
        scaling_factor: the base's; derived.
        shift_factor: the base's; derived.
        batch_norm_eps: the base's, where its statistics are a batch norm's (FLUX.2, see `bn`); derived.
        learned_shortcut: the down block's shortcut is a 1x1 conv at any width; a warm start needs it.
        patch_size: of the batch norm's packed latents; derived.
        latents_mean: the base's, then 0 for detail channels; derived.
        latents_std: the base's, then 1 for detail channels; derived.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        base_class: str = "AutoencoderKL",
        base_config: dict[str, Any] | None = None,
        scale: int = 2,
        detail_channels: int = 16,
        clamp_base_image: bool = False,
        base_units: Literal["raw", "scaled"] = "raw",
        decoder_order: Literal["base_first", "detail_first"] = "base_first",
        detail_mean: list[float] | None = None,
        detail_std: list[float] | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        latent_channels: int | None = None,
        block_out_channels: list[int] | None = None,
        encoder_block_out_channels: list[int] | None = None,
        scaling_factor: float | None = None,
        shift_factor: float | None = None,
        latents_mean: list[float] | None = None,
        latents_std: list[float] | None = None,
        batch_norm_eps: float | None = None,
        patch_size: list[int] | None = None,
        learned_shortcut: bool = False,
    ) -> None:
        super().__init__()
        _require_choice("base_units", base_units, ("raw", "scaled"))
        _require_choice("decoder_order", decoder_order, ("base_first", "detail_first"))
        expect_upgrade(scale, detail_channels)
        family = family_of(base_class)
        self.base_vae = build_base(base_class, base_config or {}).requires_grad_(False)
        self.family = family
        widths = family.block_out_channels(self.base_vae.config)
        self.layout = LatentLayout(family.latent_channels(self.base_vae.config), detail_channels)
        self.base_compression = family.compression(self.base_vae.config)
        """f: pixels of the base image a latent position stands for, a side."""
        self.compression = self.base_compression * scale
        """f s: pixels of the full image a latent position stands for, a side."""

        self.encoder: nn.Module = copy.deepcopy(self.base_vae.encoder).requires_grad_(True)
        self.decoder: nn.Module = copy.deepcopy(self.base_vae.decoder).requires_grad_(True)
        down = partial(DetailDownBlock, learned_shortcut=learned_shortcut)
        family.replace_head(self.encoder, lambda width: down(width, 2 * detail_channels, scale))
        family.replace_stem(self.decoder, lambda width: DetailUpBlock(self.layout.channels, width, scale))
        self.base_vae.eval()  # from here on: see `train`

        widths += [widths[-1]] * int(math.log2(scale))
        self.register_to_config(
            latent_channels=self.layout.channels,
            block_out_channels=widths,
            encoder_block_out_channels=widths if family.widths == "encoder_block_out_channels" else None,
            **inherited_scaling(self.base_vae.config, detail_channels),
        )
        if self.config.batch_norm_eps is not None:
            self.bn = extended_norm(self.base_vae, detail_channels)
        self.use_slicing = False
        self.use_tiling = False
        self.tile_sample_min_size = 1024
        self.tile_overlap_factor = 0.25
        self._warned: set[str] = set()

    @classmethod
    def from_base(
        cls,
        base_vae: ModelMixin,
        scale: int = 2,
        detail_channels: int | None = None,
        clamp_base_image: bool = False,
        base_units: Literal["raw", "scaled"] = "raw",
        decoder_order: Literal["base_first", "detail_first"] = "base_first",
        warm: bool = False,
    ) -> Self:
        """An untrained upgrade of a pretrained autoencoder: detail encoder and decoder start from its weights.

        Args:
            base_vae: a diffusers autoencoder of a known family; it is copied, not kept.
            scale: s, 2 or 4.
            detail_channels: D; None takes the base's own number of channels.
            clamp_base_image: see the class.
            base_units: see the class.
            decoder_order: see the class.
            warm: start the two new blocks from the base's own head and stem (see `warm_start`) instead of from
                random weights.

        Raises:
            ValueError: it is no autoencoder of a known family, its weights are not plain (see `expect_plain`), or the
                settings do not fit it. One without values (meta device) gives one without values.
        """
        family = _expect_base(base_vae)
        channels = family.latent_channels(base_vae.config)
        with base_vae.device if is_outline(base_vae) else nullcontext():
            model = cls(
                base_class=family.class_name,
                base_config=constructor_arguments(base_vae),
                scale=scale,
                detail_channels=channels if detail_channels is None else detail_channels,
                clamp_base_image=clamp_base_image,
                base_units=base_units,
                decoder_order=decoder_order,
                learned_shortcut=warm,
            )
        model.base_vae.load_state_dict(base_vae.state_dict())
        load_trunk(model.encoder, base_vae.encoder, replaced=family.head(base_vae.encoder))
        load_trunk(model.decoder, base_vae.decoder, replaced=family.stem(base_vae.decoder))
        if warm:
            warm_start(model)
        if model.config.batch_norm_eps is not None:
            model.bn.load_state_dict(extended_norm(base_vae, model.config.detail_channels).state_dict())
        return (
            model.to(base_vae.device) if base_vae.dtype == model.dtype else model.to(base_vae.device, base_vae.dtype)
        )

    @property
    def is_calibrated(self) -> bool:
        """Whether the statistics of the detail channels have been measured (after training)."""
        return self.config.detail_mean is not None

    @property
    def last_weight(self) -> nn.Parameter:
        """Weight of the decoder's last convolution."""
        return self.family.last_weight(self.decoder)

    @property
    def detail_weight(self) -> nn.Parameter:
        """Weight of the down block's convolution, where the alignment weight is measured."""
        return weight_of(self.encoder, f"{self.family.head(self.encoder)}.conv")

    @property
    def raw_scaling(self) -> LatentScaling:
        """From raw latents (`moments`) to the transformer's: the base's scaling, then the detail statistics."""
        self._require_calibration("normalise latents")
        detail = LatentScaling(tuple(self.config.detail_mean), tuple(1 / std for std in self.config.detail_std))
        return scaling_of(self.base_vae).extend(detail.shift, detail.scale)

    def calibrate(self, mean: Tensor, std: Tensor) -> None:
        """Store the measured raw mean and standard deviation of the detail channels, each [D], in the config."""
        expected = (self.layout.detail_channels,)
        if tuple(mean.shape) != expected or tuple(std.shape) != expected:
            raise ValueError(
                f"Detail statistics have the wrong shape; got {tuple(mean.shape)} and {tuple(std.shape)}, "
                f"expected {expected}."
            )
        if not (torch.isfinite(mean).all() and torch.isfinite(std).all() and (std > 0).all()):
            raise ValueError(
                "Detail statistics must be finite with positive deviations; a dead or diverged channel is in "
                f"mean {mean.tolist()}, std {std.tolist()}."
            )
        self.register_to_config(detail_mean=[float(v) for v in mean], detail_std=[float(v) for v in std])

    def base_image(self, image: Tensor) -> Tensor:
        """The image s times smaller: bicubic without antialiasing, as the authors have it."""
        small = F.interpolate(image, scale_factor=1 / self.config.scale, mode="bicubic", align_corners=False)
        return small.clamp(-1, 1) if self.config.clamp_base_image else small

    def base_latent(self, image: Tensor) -> Tensor:
        """Raw latent [B, C, h, w] that the base autoencoder gives the downsampled image; no gradient."""
        self._expect_image(image)
        with torch.no_grad():
            f = self.base_compression
            return self._tiled(
                lambda tile: self.family.encode(self.base_vae, tile), self.base_image(image), f, unit=f
            )

    @apply_forward_hook
    def moments(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Raw moments of images [B, 3, H, W] in [-1, 1]: base mode [B, C, h, w], detail mean and log-variance."""
        self._expect_image(image)
        if self.use_slicing and image.shape[0] > 1:
            base, mean, logvar = zip(*map(self._moments, image.split(1)), strict=True)
            return torch.cat(base), torch.cat(mean), torch.cat(logvar)
        return self._moments(image)

    @overload
    def encode(self, x: Tensor, return_dict: Literal[True] = True) -> AutoencoderKLOutput: ...
    @overload
    def encode(self, x: Tensor, return_dict: bool) -> AutoencoderKLOutput | tuple[StructuredPosterior]: ...
    @apply_forward_hook
    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[StructuredPosterior]:
        """Images [B, 3, H, W] in [-1, 1] -> posterior over stored latents [B, C + D, H / (f s), W / (f s)]."""
        if not self.is_calibrated:
            self._warn_untrained("the detail channels it encodes are not normalised")
        base, mean, logvar = self.moments(x)
        _, scale = self._detail_affine(mean)
        logvar = logvar + 2 * scale.log()
        posterior = StructuredPosterior(
            self.store(base, mean),
            self.layout.join(torch.full_like(base, LOGVAR_RANGE[0]), logvar),
            self.layout.base_channels,
        )
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def store(self, base: Tensor, detail: Tensor) -> Tensor:
        """Raw base [B, C, h, w] and raw detail [B, D, h, w] -> the latent that `decode` takes."""
        shift, scale = self._detail_affine(detail)
        return self.layout.join(base, (detail - shift) * scale)

    @overload
    def decode(
        self, z: Tensor, return_dict: Literal[True] = True, generator: torch.Generator | None = None
    ) -> DecoderOutput: ...
    @overload
    def decode(
        self, z: Tensor, return_dict: bool, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[Tensor]: ...
    @apply_forward_hook
    def decode(
        self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[Tensor]:
        """Stored latents [B, C + D, h, w] -> images [B, 3, h f s, w f s], nominally in [-1, 1], not clamped.

        `generator` is accepted because pipelines pass it; decoding draws nothing.
        """
        if not self.is_calibrated:
            self._warn_untrained("its decoder draws noise; preview(z) shows the base image")
        base, detail = self.layout.split(z)
        shift, scale = self._detail_affine(detail)
        joint = self._joint(self._inner_base(base), detail / scale + shift)
        if self.use_slicing and joint.shape[0] > 1:
            image = torch.cat([self._tiled(self.decoder, row, self.compression) for row in joint.split(1)])
        else:
            image = self._tiled(self.decoder, joint, self.compression)
        return DecoderOutput(sample=image) if return_dict else (image,)

    @apply_forward_hook
    def preview(self, z: Tensor) -> Tensor:
        """The base channels of z decoded by the base autoencoder and enlarged: [B, 3, h f s, w f s]."""
        base, _ = self.layout.split(z)
        small = self._tiled(lambda tile: self.family.decode(self.base_vae, tile), base, self.base_compression)
        # Not `core.pixels.enlarge`, which computes in float32: in bfloat16 at scale 4 that rounds to other pixels.
        return F.interpolate(small, scale_factor=self.config.scale, mode="bicubic", align_corners=False)

    def forward(
        self, sample: Tensor, noise: Tensor | None = None, keep: Tensor | None = None, base: Tensor | None = None
    ) -> StructuredOutput:
        """Reconstruct images for training.

        Args:
            sample: images [B, 3, H, W] in [-1, 1].
            noise: standard normals [B, D, h, w] of the posterior draw; None takes the mean.
            keep: factor [B] on the detail that the decoder sees (0 drops a sample's detail); None keeps all.
            base: raw base latents, if they are at hand; None encodes them.
        """
        base = self._inner_base(self.base_latent(sample) if base is None else base)
        mean, logvar = _split_moments(self.encoder(sample))
        detail = mean if noise is None else mean + (0.5 * logvar).exp() * noise
        shown = detail if keep is None else detail * keep.to(detail).view(-1, 1, 1, 1)
        image = self.decoder(self._joint(base.to(shown.dtype), shown))
        return StructuredOutput(sample=image, base=base, detail=detail, detail_mean=mean, detail_logvar=logvar)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the trained parts; the frozen base stays in eval mode."""
        super().train(mode)
        self.base_vae.eval()
        return self

    def _warn_untrained(self, consequence: str) -> None:
        if consequence not in self._warned:
            self._warned.add(consequence)
            warnings.warn(
                f"This AutoencoderDA has not been trained and calibrated yet: {consequence}. "
                f"Train it with 'davae train-tokenizer'.",
                stacklevel=3,
            )

    def _moments(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tiled = self._tiled(self.encoder, image, self.compression, unit=self.compression)
        return self.base_latent(image), *_split_moments(tiled)

    def _tiled(self, function: Callable[[Tensor], Tensor], inputs: Tensor, compression: int, unit: int = 1) -> Tensor:
        """function(inputs), by tiles where tiling is on and the image is larger than a tile.

        Args:
            function: encoder (image to latent) or decoder (latent to image) of this compression.
            inputs: image or latent.
            compression: pixels a side that a latent position stands for.
            unit: positions of `inputs` a latent position, a side: the compression for images, 1 for latents.
        """
        tile = self.tile_sample_min_size // compression
        if not self.use_tiling or max(inputs.shape[-2:]) <= tile * unit:
            return function(inputs)
        return run_tiled(function, inputs, tile * unit, int(tile * self.tile_overlap_factor) * unit)

    def _inner_base(self, base: Tensor) -> Tensor:
        """Raw base latent -> its units inside the decoder."""
        return scaling_of(self.base_vae).normalise(base) if self.config.base_units == "scaled" else base

    def _joint(self, base: Tensor, detail: Tensor) -> Tensor:
        """What the decoder takes: both parts in its own order."""
        return self.layout.join(base, detail, detail_first=self.config.decoder_order == "detail_first")

    def _detail_affine(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """(shift, scale) with stored = (raw - shift) * scale, [1, D, 1, 1]; see `detail_affine`."""
        mean, std = self.config.detail_mean, self.config.detail_std
        shift, scale = detail_affine(scaling_of(self), self.layout.detail_channels, mean, std)
        return shift.view(1, -1, 1, 1).to(like), scale.view(1, -1, 1, 1).to(like)

    def _expect_image(self, image: Tensor) -> None:
        height, width = image.shape[-2:]
        if height % self.compression or width % self.compression:
            raise ValueError(
                f"Image sides must be multiples of {self.compression} (compression {self.base_compression} x scale "
                f"{self.config.scale}); got {height} x {width}. Crop or resize the image."
            )

    def _require_calibration(self, what: str) -> None:
        if not self.is_calibrated:
            raise ValueError(
                f"Cannot {what}: the detail statistics of this AutoencoderDA have not been measured. "
                f"Train it with 'davae train-tokenizer', or call calibrate(mean, std)."
            )


def _split_moments(moments: Tensor) -> tuple[Tensor, Tensor]:
    mean, logvar = moments.chunk(2, dim=1)
    return mean, logvar.clamp(*LOGVAR_RANGE)


def expect_upgrade(scale: object, detail_channels: object = None) -> None:
    """Refuse what an autoencoder cannot be upgraded by; None stands for detail channels that are chosen later.

    Raises:
        ValueError: the scale is not 2 or 4, or there is not a whole, positive number of detail channels.
    """
    if type(scale) is not int or scale not in (2, 4):
        raise ValueError(
            f"AutoencoderDA supports scale 2 and 4; got {scale!r}. The size of an image, in pixels, is image_size."
        )
    if detail_channels is not None and (type(detail_channels) is not int or detail_channels < 1):
        raise ValueError(
            f"AutoencoderDA needs at least one detail channel; got {detail_channels!r}. Give a whole number, for "
            f"example as many as the base has channels."
        )


def _expect_base(base_vae: Any) -> BaseFamily:
    """The family of an autoencoder that can be upgraded."""
    if isinstance(base_vae, nn.Module):
        expect_plain(base_vae, "upgrade", outline=True)
    name = type(base_vae).__name__
    if name == STRUCTURED or not (isinstance(base_vae, ModelMixin) and "Autoencoder" in name):
        raise ValueError(
            f"AutoencoderDA.from_base takes a pretrained autoencoder of diffusers; {instead_of(base_vae)}"
        )
    return family_of(name)


def _require_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"AutoencoderDA cannot use {name} {value!r}; allowed: {', '.join(allowed)}.")


# The stored name in model_index.json: diffusers looks the class up as davae.AutoencoderDA.
AutoencoderDA.__module__ = "davae"
