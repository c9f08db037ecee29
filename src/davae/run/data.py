"""The images of a run: training and test parts, at the sizes that its stages need."""

from collections.abc import Callable
from functools import cached_property

from davae.data.buckets import Size, bucket_sizes
from davae.data.hold_out import HoldOut, Rule, filling
from davae.data.image_source import ImageSource
from davae.data.latent_cache import LatentCache
from davae.data.splits import open_train_test
from davae.recipe import DataConfig
from davae.run import geometry
from davae.run.origins import Origins

SHOWN_SKIPPED = 10
"""Images that cannot be used and are named at once; run.json lists all."""


class RunData:
    """Images of one run, opened when they are asked for.

    Args:
        origins: of the run.
        held_out_by: rule by which test images are held out, see `data.splits`.
        say: hears of images that cannot be used.
    """

    def __init__(self, origins: Origins, held_out_by: Rule, say: Callable[[str], None]) -> None:
        self._origins, self._recipe = origins, origins.recipe
        self.held_out_by, self._say = held_out_by, say
        self.skipped: list[tuple[str, str]] | None = None
        """(name, reason) of unusable images; None until the data were opened."""

    @property
    def train(self) -> ImageSource:
        """Training images that fill a square of the image size, or of what crops are cut from."""
        return self._squares[0]

    @property
    def test(self) -> ImageSource:
        """Test images of the same size, never trained on."""
        return self._squares[1]

    @property
    def finetune(self) -> ImageSource:
        """Training images of the transformer, which may have other shapes than a square."""
        return self._every_shape[0] if self._has_small_buckets else self.train

    @cached_property
    def realism(self) -> ImageSource:
        """Training images of the second round of fine-tuning."""
        assert self._recipe.realism is not None
        return self._open(self._recipe.realism.data, self._smallest_side)[0]

    @cached_property
    def buckets(self) -> tuple[Size, ...]:
        """(height, width) of the images that the transformer is trained on, pixels."""
        config, size = self._recipe.cache, self._recipe.image_size
        if "cache" in self._recipe.reuse:
            stored = LatentCache(self._origins.result("cache")).manifest.buckets
            return tuple((height, width) for height, width, _ in stored)
        if config is None or config.max_aspect == 1:
            return ((size, size),)
        token_side = self._origins.pair.backbone.token_side(self._origins.pair.transformer_config)
        return bucket_sizes(size, geometry.upgraded(self._origins).compression * token_side, config.max_aspect)

    @property
    def _smallest_side(self) -> int:
        return min(map(min, self.buckets))

    @property
    def _has_small_buckets(self) -> bool:
        """Whether images that do not fill the square are of use."""
        return self._smallest_side < self._recipe.image_size

    @cached_property
    def _squares(self) -> tuple[ImageSource, ImageSource]:
        pretrain = self._recipe.pretrain
        side = self._recipe.image_size or (pretrain.image_size if pretrain is not None else 1)
        for training in (self._recipe.tokenizer, None if pretrain is None else pretrain.autoencoder):
            if training is not None and training.crop_from is not None:
                side = max(side, training.crop_from)
        if not self._has_small_buckets:
            return self._open(self._recipe.data, side)
        train, test = self._every_shape
        return filling(train, side), filling(test, side)

    @cached_property
    def _every_shape(self) -> tuple[ImageSource, ImageSource]:
        return self._open(self._recipe.data, self._smallest_side)

    def _open(self, data: DataConfig | None, side: int) -> tuple[ImageSource, ImageSource]:
        assert data is not None
        choice = HoldOut(count=data.test_count, share=data.test_share, rule=self.held_out_by)
        train, test = open_train_test(data.kind, data.path, side, choice, data.count, data.seed)
        self.skipped = list(dict.fromkeys((*train.skipped, *test.skipped)))  # parts of one set share the list
        for name, reason in self.skipped[:SHOWN_SKIPPED]:
            self._say(f"skipped {name}: {reason}")
        if self.skipped:
            self._say(f"{len(self.skipped)} files could not be used; the list is in run.json.")
        if data.kind != "solids" and data.test_count is None and data.test_share is None:
            self._say(f"{len(test):,} images are for testing; data.test_count sets another number.")
        if data.test_count is not None and data.test_share is None and len(test) < data.test_count:
            self._say(
                f"{len(test):,} test images instead of {data.test_count:,}: no other that is held out is usable."
            )
        return train, test
