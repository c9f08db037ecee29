"""Weights that people already have become diffusers folders: one file a layout, and `folder.convert` for all."""
