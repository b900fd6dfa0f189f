"""How a fit ended."""

from __future__ import annotations

from enum import Enum


class Status(Enum):
    """How a fit ended; the values are sentences."""

    CONVERGED = "The estimated remaining gain is below the tolerance."
    HELD_OUT = "The bound on held-out data stopped improving; the values that were best on them are returned."
    EVALUATED = "No steps were asked for: the objective was evaluated at the start."
    OUT_OF_STEPS = "The fit ran out of steps before the estimated remaining gain fell below the tolerance."
    ALL_STEPS = "All steps that were asked for were taken; convergence was not tested."
    DEGENERATE = (
        "A component collapsed: its likelihood is unbounded, and the fit stopped before numbers overflowed; or it was left "
        "without data."
    )
    NOT_MONOTONE = (
        "A step lowered the objective beyond rounding: an M-step rule or an engine is wrong for this program."
    )
    NON_FINITE = "The objective became infinite or undefined."
    INTERRUPTED = "The fit was interrupted; the best values so far are returned."
    STOPPED = "A callback asked the fit to stop."

    def __str__(self) -> str:
        return self.value
