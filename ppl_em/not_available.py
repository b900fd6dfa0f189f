"""Names of the public contract that this version does not provide."""

from __future__ import annotations

from typing import Any

from ppl_em.errors import NotAvailableYet, message

__all__ = ["calibrate"]


def calibrate(model: Any, *args: Any, **options: Any) -> Any:
    """Simulation-based calibration of a fit (not available yet).

    Raises:
        NotAvailableYet: always.
    """
    raise NotAvailableYet(message("calibrate() is not available yet", hint="result.diagnose()"))
