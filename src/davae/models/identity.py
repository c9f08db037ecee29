"""What a model is, apart from where it lies: a hash of its weights, and a config that names no path."""

import hashlib
import json
from typing import TypeVar

from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from davae.core.files import DIGEST_SIZE

Model = TypeVar("Model", bound=ModelMixin)


def weights_hash(model: ModelMixin) -> str:
    """Hash of a diffusers model's config and weights, the same on every device and for every way of storing them."""
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
    # An entry without a value is as good as none, so that a later version may add one.
    config = {key: value for key, value in model.config.items() if value is not None and not key.startswith("_")}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    _add_weights(digest, model)
    return digest.hexdigest()


def nameless(model: Model) -> Model:
    """The model without the path it was loaded from: what is saved must not depend on where a part of it lay."""
    model.register_to_config(_name_or_path="")
    return model


def state_hash(model: nn.Module) -> str:
    """Hash of any network's weights, the same on every device and for every way of storing them."""
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
    _add_weights(digest, model)
    return digest.hexdigest()


def _add_weights(digest: "hashlib.blake2b", model: nn.Module) -> None:
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy())
