"""CLIP: images and texts as vectors that can be compared, in float32 and with OpenAI's own preprocessing."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self, cast

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from davae.models.identity import state_hash
from davae.models.pretrained import load_network

_MEAN, _DEVIATION = (
    np.array(of, np.float32)[:, None, None]
    for of in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
)


class Clip:
    """A frozen CLIP.

    Args:
        model: of transformers.
        tokenizer: its own.
        name: where it comes from.
        device: to compute on.
    """

    def __init__(
        self,
        model: "transformers.CLIPModel",  # quoted, as what follows: transformers imports a model when it is named
        tokenizer: "transformers.PreTrainedTokenizerBase",
        name: str,
        device: torch.device | None = None,
    ) -> None:
        self.device = device or torch.device("cpu")
        nn.Module.to(model, self.device)
        self._model, self._tokenizer, self._name = model, tokenizer, name
        config: Any = model.config
        self._side: int = config.vision_config.image_size
        self.max_length: int = config.text_config.max_position_embeddings
        self.logit_scale = float(model.logit_scale.detach().double().exp())

    @classmethod
    def from_pretrained(
        cls, source: str, allow_download: bool = False, device: torch.device | None = None, option: str = "--clip"
    ) -> Self:
        """Load a folder that transformers saved, or a model of the hub; see `load_network` for what is refused."""
        model = load_network(transformers.CLIPModel, source, option, allow_download)
        try:
            tokenizer = transformers.CLIPTokenizer.from_pretrained(source, local_files_only=not allow_download)
        except (OSError, TypeError, ValueError) as error:
            raise FileNotFoundError(
                f"{source} has no tokenizer that can be read: {str(error).splitlines()[0]}. Save it beside the model."
            ) from error
        vocabulary = cast(Any, model.config.text_config).vocab_size
        if len(tokenizer) != vocabulary:  # one without files is made of special tokens, and takes any text
            raise ValueError(
                f"The tokenizer in {source} is not that of its model: it has {len(tokenizer)} tokens, the model "
                f"{vocabulary}. Save both together."
            )
        return cls(model, tokenizer, source, device)

    @cached_property
    def identity(self) -> dict[str, str]:
        """What its numbers depend on."""
        return {
            "model": self._name,
            "weights": state_hash(self._model),
            "precision": "float32",
            "image": f"shorter side to {self._side} px by Pillow's bicubic, centre {self._side} px, CLIP's mean and "
            f"deviation",
            "text": f"cut to {self.max_length} tokens",
        }

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB images -> [N, D], not normalised, on the CPU."""
        pixels = torch.stack([preprocess(image, self._side) for image in images]).to(self.device)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return self._model.get_image_features(pixels).pooler_output.float().cpu()

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> [N, D], not normalised, on the CPU."""
        tokens = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        ).to(self.device)
        return self._model.get_text_features(tokens.input_ids, tokens.attention_mask).pooler_output.float().cpu()

    def is_cut(self, text: str) -> bool:
        """Whether a text has more tokens than the model takes."""
        return len(self._tokenizer(text, verbose=False).input_ids) > self.max_length


def preprocess(image: Image.Image, side: int) -> Tensor:
    """An RGB image as CLIP takes it: float32 [3, side, side]."""
    width, height = image.size
    longer = max(side, int(side * max(width, height) / min(width, height)))
    image = image.resize((side, longer) if width < height else (longer, side), Image.Resampling.BICUBIC)
    left, top = (round((length - side) / 2) for length in image.size)
    return torch.from_numpy(normalised(np.asarray(image.crop((left, top, left + side, top + side)))))


def normalised(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 [S, S, 3] -> float32 [3, S, S], of mean 0 and deviation 1 over what CLIP was trained on."""
    return (pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(255) - _MEAN) / _DEVIATION
