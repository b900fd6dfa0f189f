"""Stochastic variational inference: guides built from the program, the bound, its gradient steps, what comes out."""
