"""The base of every configuration dataclass of a recipe."""


class Config:
    """Makes unknown keys an error wherever pydantic validates a subclass (it does not by default)."""

    __pydantic_config__ = {"extra": "forbid"}
