"""Owner of the version; `davae.__version__` is the same."""

__version__ = "0.1.0"
