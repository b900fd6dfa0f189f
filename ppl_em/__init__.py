"""Fit Pyro programs the best way that their structure allows: exact EM, variational inference, or both.

The names below are imported on first use: PyTorch and Pyro take seconds to import, and the command line
answers ``--help`` without them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppl_em import distributions as distributions
    from ppl_em import testing as testing
    from ppl_em.comparison import compare as compare
    from ppl_em.diagnostics.simulated_calibration import calibrate as calibrate
    from ppl_em.fitting import ENGINES as ENGINES
    from ppl_em.fitting import explain as explain
    from ppl_em.fitting import fit as fit
    from ppl_em.fitting import iterate as iterate
    from ppl_em.likelihood_ratio import likelihood_ratio_test as likelihood_ratio_test
    from ppl_em.methods import EM as EM
    from ppl_em.methods import SVI as SVI
    from ppl_em.methods import Auto as Auto
    from ppl_em.plan.plan import Plan as Plan
    from ppl_em.result import FitResult as FitResult
    from ppl_em.selection import select as select
    from ppl_em.status import Status as Status
    from ppl_em.storage import load as load
    from ppl_em.svi.guide_for import guide_for as guide_for
    from ppl_em.trace.time_axis import markov as markov

# No module of the package may have the name of a function here: importing it would hide the function.
_HOMES = {
    "EM": "methods",
    "ENGINES": "fitting",
    "SVI": "methods",
    "Auto": "methods",
    "FitResult": "result",
    "Plan": "plan.plan",
    "Status": "status",
    "calibrate": "diagnostics.simulated_calibration",
    "compare": "comparison",
    "distributions": "",
    "explain": "fitting",
    "fit": "fitting",
    "guide_for": "svi.guide_for",
    "iterate": "fitting",
    "likelihood_ratio_test": "likelihood_ratio",
    "load": "storage",
    "markov": "trace.time_axis",
    "select": "selection",
    "testing": "",
}

__all__ = [
    "EM",
    "ENGINES",
    "SVI",
    "Auto",
    "FitResult",
    "Plan",
    "Status",
    "calibrate",
    "compare",
    "distributions",
    "explain",
    "fit",
    "guide_for",
    "iterate",
    "likelihood_ratio_test",
    "load",
    "markov",
    "select",
    "testing",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES[name]
    value = getattr(import_module(f"{__name__}.{home}"), name) if home else import_module(f"{__name__}.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
