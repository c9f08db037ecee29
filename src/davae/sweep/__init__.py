"""A sweep: many runs of one recipe, what varies between them, and what came out."""
