"""Uncertainty of a fit, and checks of what can be trusted about it."""

from ppl_em.diagnostics.check import Check, Diagnosis, Outcome
from ppl_em.diagnostics.checks import EM_CHECKS
from ppl_em.diagnostics.factor_checks import FACTOR_CHECKS
from ppl_em.diagnostics.svi_checks import SVI_CHECKS

CHECKS = (*SVI_CHECKS, *FACTOR_CHECKS, *EM_CHECKS)
"""All checks, in the order of the report. Each takes a result and returns a ``Check``, or None where it does not apply;
pass ``(*CHECKS, mine)`` to ``diagnose`` to add one."""

__all__ = ["CHECKS", "EM_CHECKS", "FACTOR_CHECKS", "SVI_CHECKS", "Check", "Diagnosis", "Outcome"]
