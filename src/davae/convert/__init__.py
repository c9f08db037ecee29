"""Weights that people already have become diffusers folders: a `from_` file a layout, `dispatch.convert` for all."""
