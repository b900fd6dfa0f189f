"""Coordinate-ascent variational Bayes for conjugate exponential-family programs."""
