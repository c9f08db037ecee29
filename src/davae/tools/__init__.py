"""Verbs without a section of a recipe: each is a file or a folder, and none imports another."""
