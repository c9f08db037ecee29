"""Distances and scores: pure functions of feature vectors, in float64."""
