"""Recipes of `davae demo`."""
