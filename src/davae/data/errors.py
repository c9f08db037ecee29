"""The one error of this room."""


class DataError(ValueError):
    """A data set that cannot be used as it is."""
