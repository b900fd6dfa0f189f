"""Fit Pyro programs the best way that their structure allows: exact EM, variational inference, or both."""

from ppl_em import distributions
from ppl_em.fitting import ENGINES, explain, fit, iterate
from ppl_em.methods import EM, SVI, Auto
from ppl_em.plan.plan import Plan
from ppl_em.result import FitResult
from ppl_em.status import Status
from ppl_em.storage import load

__all__ = [
    "EM",
    "ENGINES",
    "SVI",
    "Auto",
    "FitResult",
    "Plan",
    "Status",
    "distributions",
    "explain",
    "fit",
    "iterate",
    "load",
]
