"""Names of the public contract that this version does not provide."""

from __future__ import annotations

from typing import Any

from ppl_em.errors import NotAvailableYet, message

__all__ = ["calibrate", "guide_for"]


def calibrate(model: Any, *args: Any, **options: Any) -> Any:
    """Simulation-based calibration of a fit (not available yet).

    Raises:
        NotAvailableYet: always.
    """
    raise NotAvailableYet(message("calibrate() is not available yet", hint="result.diagnose()"))


def guide_for(model: Any, *args: Any, **options: Any) -> Any:
    """The automatic amortised guide of a program as an ordinary Pyro guide (not available yet).

    Raises:
        NotAvailableYet: always.
    """
    raise NotAvailableYet(message("guide_for() is not available yet", hint="a guide of your own with Pyro's SVI"))
