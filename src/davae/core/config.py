"""The base of every configuration dataclass of a recipe."""


class Config:
    """Makes unknown keys an error wherever pydantic validates a subclass (it does not by default)."""

    __pydantic_config__ = {"extra": "forbid"}


def require_positive(config: object, *names: str) -> None:
    """Refuse settings below 1.

    Raises:
        ValueError: one of the named attributes is.
    """
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1; got {getattr(config, name)}")
