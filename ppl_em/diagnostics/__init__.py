"""Uncertainty of a fit, and checks of what can be trusted about it."""
