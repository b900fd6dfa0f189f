"""Lowering: exponential-family sites as matrix products of statistics and natural parameters, in cache-sized chunks."""
