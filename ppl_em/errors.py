"""The errors that ``ppl_em`` raises, one hierarchy.

Every message answers four questions in one sentence: what is wrong, at which site, with which value, and
why; and ends with what to try. `message` puts the parts together, so that all messages read alike.
"""

from __future__ import annotations

__all__ = [
    "ConvergenceError",
    "DataError",
    "DependencyError",
    "EngineError",
    "FileError",
    "ModelError",
    "NotAvailableYet",
    "NotVectorised",
    "PlanError",
    "PplEmError",
    "RuleError",
    "message",
]


class PplEmError(Exception):
    """Anything that `ppl_em` reports to its user; the command line prints it as one line."""


class ModelError(PplEmError, ValueError):
    """The program cannot be read as a model: not callable, wrong arguments, an unsupported construct."""


class DataError(PplEmError, ValueError):
    """The data cannot be scored: not finite, outside a support, empty, or of the wrong shape."""


class FileError(DataError):
    """A file or directory cannot be read or written, or would be overwritten."""


class PlanError(PplEmError, ValueError):
    """The plan that was asked for is refused: no exact engine, over the budget, contradictory options."""


class NotVectorised(PlanError):
    """The body of a time loop does something that cannot be done for all steps at once."""


class EngineError(PplEmError, ArithmeticError):
    """An engine met numbers it cannot work with: no mass, a matrix that is not positive definite."""


class RuleError(PplEmError, ArithmeticError):
    """An M-step rule broke its promise: it lowered the objective or left the parameter's constraint."""


class ConvergenceError(PplEmError, ArithmeticError):
    """The iterations produced nothing usable: every start ended in a value that is not finite."""


class DependencyError(PplEmError, ImportError):
    """A package that this operation needs is missing or too old."""


class NotAvailableYet(PplEmError, NotImplementedError):
    """Part of the public contract that this version does not provide."""


def message(
    what: str,
    *,
    site: str | None = None,
    value: object = None,
    why: str | None = None,
    hint: str | None = None,
) -> str:
    """Composes an error message: ``what at site 'x' (value …): why. Try …``.

    Args:
        what: What is wrong, without a full stop.
        site: Name of the sample site, parameter or argument concerned.
        value: The offending value, shown with `str`; long values are cut.
        why: The reason, without a full stop.
        hint: What to do about it, completing the sentence "Try …".

    Returns:
        One or two sentences, ending with a full stop.

    Example:
        >>> message("NaN in the observed data", site="obs", value="3 of 272", hint="dropping those rows")
        "NaN in the observed data at site 'obs' (value 3 of 272). Try dropping those rows."
    """
    text = what.rstrip(".")
    if site is not None:
        text += f" at site '{site}'"
    if value is not None:
        text += f" (value {_short(value)})"
    if why is not None:
        text += f": {why.rstrip('.')}"
    text += "."
    if hint is not None:
        text += f" Try {hint.rstrip('.')}."
    return text


def _short(value: object, limit: int = 120) -> str:
    """Returns `value` as one line of at most `limit` characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
