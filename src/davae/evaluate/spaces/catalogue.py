"""The spaces by name: another one is a file of its own and a line here."""

from collections.abc import Callable

from davae.evaluate.spaces import clip, dinov2, inception, solids
from davae.evaluate.spaces.space import FeatureSpace, Loading

SPACES: dict[str, Callable[[Loading], FeatureSpace]] = {
    inception.NAME: inception.load,
    dinov2.NAME: dinov2.load,
    clip.NAME: clip.load,
    solids.NAME: solids.load,
}
"""Name -> what opens it."""
