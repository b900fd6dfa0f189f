"""Fit Pyro programs the best way that their structure allows: exact EM, variational inference, or both.

The names below are imported on first use: PyTorch and Pyro take seconds to import, and the command line
answers ``--help`` without them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppl_em import distributions as distributions
    from ppl_em.comparison import compare as compare
    from ppl_em.fitting import ENGINES as ENGINES
    from ppl_em.fitting import explain as explain
    from ppl_em.fitting import fit as fit
    from ppl_em.fitting import iterate as iterate
    from ppl_em.methods import EM as EM
    from ppl_em.methods import SVI as SVI
    from ppl_em.methods import Auto as Auto
    from ppl_em.plan.plan import Plan as Plan
    from ppl_em.result import FitResult as FitResult
    from ppl_em.status import Status as Status
    from ppl_em.storage import load as load

# No module of the package may have the name of a function here: importing it would hide the function.
_HOMES = {
    "EM": "methods",
    "ENGINES": "fitting",
    "SVI": "methods",
    "Auto": "methods",
    "FitResult": "result",
    "Plan": "plan.plan",
    "Status": "status",
    "compare": "comparison",
    "distributions": "",
    "explain": "fitting",
    "fit": "fitting",
    "iterate": "fitting",
    "load": "storage",
}

__all__ = [
    "EM",
    "ENGINES",
    "SVI",
    "Auto",
    "FitResult",
    "Plan",
    "Status",
    "compare",
    "distributions",
    "explain",
    "fit",
    "iterate",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES[name]
    value = (
        getattr(import_module(f"{__name__}.{home}"), name) if home else import_module(f"{__name__}.{name}")
    )
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
