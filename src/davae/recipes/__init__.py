"""Recipes that come with the package, by their names: `davae run sd35m-1k`."""
