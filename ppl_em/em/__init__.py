"""Expectation–maximisation over a plan: E-step, M-step, starts, acceleration, and the loop."""
