"""Uncertainty of a fit, and checks of what can be trusted about it."""

from ppl_em.diagnostics.check import Check, Diagnosis, Outcome
from ppl_em.diagnostics.checks import CHECKS

__all__ = ["CHECKS", "Check", "Diagnosis", "Outcome"]
