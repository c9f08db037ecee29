"""Networks of transformers that give features: loaded whole, from a folder or the hub."""

from typing import TypeVar

from transformers.modeling_utils import PreTrainedModel

from davae.evaluate.spaces.space import Loading
from davae.models.pretrained import load_network

Network = TypeVar("Network", bound=PreTrainedModel)


def load_pretrained(kind: type[Network], space: str, public: str, loading: Loading) -> tuple[Network, dict[str, str]]:
    """A network in float32 and eval mode, and what is known of where it came from.

    Args:
        kind: its class.
        space: that it is for.
        public: its name on the hub, taken where `loading` names no other.
        loading: where from.

    Raises:
        FileNotFoundError: there is no such folder, or the hub's files are not on this machine and may not be fetched.
        ValueError: the network is another one, or not complete.
    """
    source = loading.weights or public
    try:
        network = load_network(kind, source, f"--weights {space}=", loading.allow_download)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error} --download fetches what is named so, or {public}.") from error
    about = {"source": source}
    if commit := getattr(network.config, "_commit_hash", None):
        about["commit"] = commit
    return network, about
