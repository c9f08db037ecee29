"""The one error of this room."""


class RecipeError(ValueError):
    """A recipe that cannot be run, with every problem listed."""
