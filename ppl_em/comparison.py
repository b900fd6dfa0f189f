"""Fits side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ppl_em.errors import DataError, PlanError, message

if TYPE_CHECKING:
    import pandas as pd

    from ppl_em.result import FitResult

__all__ = ["compare"]

CRITERIA = ("bic", "aic", "icl")


def compare(results: Mapping[str, FitResult], criterion: str = "bic") -> pd.DataFrame:
    """Compares fits of the same data, the smallest criterion first.

    Args:
        results: Fits by name. Criteria are comparable only between fits of the same observations.
        criterion: ``"bic"``, ``"aic"`` or ``"icl"``, by which the rows are in order. The cross-validated log-likelihood
            needs fits to parts of the data: :func:`ppl_em.select`.

    Returns:
        One row per fit: ``objective`` and ``log_likelihood`` in nats, ``num_parameters``,
        ``num_observations``, ``aic``, ``bic`` (``icl`` where asked for) and ``delta_bic`` (above the smallest; named
        after the criterion), ``exact``, ``status``.
        Where the log-likelihood is not known exactly, the criteria are missing and the row comes last.

    Raises:
        DataError: There is nothing to compare, or the numbers of observations differ.
        PlanError: Unknown criterion.

    Reference:
        Schwarz (1978), Estimating the dimension of a model. Annals of Statistics 6(2).

    Example:
        >>> import torch, pyro, pyro.distributions as dist, ppl_em
        >>> def normal(x, scale=None):
        ...     loc = pyro.param("loc", torch.tensor(0.0))
        ...     if scale is None:
        ...         scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, scale), obs=x)
        >>> x = torch.tensor([0.1, 5.2, 9.7, 15.3])
        >>> free = ppl_em.fit(normal, x)
        >>> fixed = ppl_em.fit(normal, x, model_kwargs={"scale": torch.tensor(1.0)})
        >>> list(ppl_em.compare({"fixed": fixed, "free": free}).index)
        ['free', 'fixed']
    """
    import pandas as pd

    if criterion not in CRITERIA:
        raise PlanError(message("unknown criterion", value=criterion, hint=f"one of {', '.join(CRITERIA)}"))
    if not results:
        raise DataError(message("nothing to compare", hint='compare({"name": result, …})'))
    sizes = {name: result.num_observations for name, result in results.items()}
    if len({*sizes.values()}) > 1:
        raise DataError(message("fits of different data cannot be compared", value=sizes))
    rows = []
    for result in results.values():
        known = result.log_likelihood is not None
        rows.append(
            {
                "objective": result.objective,
                "log_likelihood": result.log_likelihood if known else float("nan"),
                "num_parameters": result.num_parameters,
                "num_observations": result.num_observations,
                "aic": result.aic if known else float("nan"),
                "bic": result.bic if known else float("nan"),
                **({"icl": result.icl if known else float("nan")} if criterion == "icl" else {}),
                "exact": result.exact,
                "status": result.status.name.lower(),
            }
        )
    table = pd.DataFrame(rows, index=pd.Index(results, name="fit")).sort_values(criterion, na_position="last")
    table.insert(6 + (criterion == "icl"), f"delta_{criterion}", table[criterion] - table[criterion].min())
    return table
