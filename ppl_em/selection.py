"""Model choice: the same data under several sizes of a program."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ppl_em.cross_validation import FOLDS, held_out_log_likelihood
from ppl_em.errors import ConvergenceError, PlanError, message

if TYPE_CHECKING:
    import pandas as pd

    from ppl_em.result import FitResult

__all__ = ["Selection", "select"]

CRITERIA = ("bic", "aic", "icl", "cv")


@dataclass(frozen=True, eq=False)
class Selection:
    """What :func:`select` found.

    Args:
        table: one row per choice in the order given; as :func:`ppl_em.compare`, with ``icl`` or ``cv`` where asked for.
        results: fits by choice.
        choice: the best choice by the criterion.
        criterion: ``"bic"``, ``"aic"`` or ``"icl"``, where smaller is better, or ``"cv"``, where larger is.
    """

    table: pd.DataFrame
    results: dict[Any, FitResult] = field(repr=False)
    choice: Any
    criterion: str

    @property
    def best(self) -> FitResult:
        """The fit of the best choice."""
        return self.results[self.choice]

    def __str__(self) -> str:
        which = "largest" if self.criterion == "cv" else "smallest"
        return f"{self.table.to_string()}\n{which} {self.criterion}: {self.choice}"


def select(
    make_model: Callable[[Any], Any],
    choices: Iterable[Any],
    *args: Any,
    criterion: str = "bic",
    folds: int = FOLDS,
    **options: Any,
) -> Selection:
    """Fit a program for each of several choices (numbers of components, say) and rank the fits.

    Args:
        make_model: from a choice to a Pyro program.
        choices: what to choose from, hashable.
        args: arguments of the programs.
        criterion: ``"bic"``, ``"aic"``, ``"icl"``, or ``"cv"``: the log-likelihood of data that are held out, in nats,
            summed over folds of the data plate.
        folds: number of folds, for ``"cv"``.
        options: as for :func:`ppl_em.fit`.

    Returns:
        The table of all fits, the fits, and the best choice. Fits that ended in a collapse are listed but not chosen.

    Raises:
        PlanError: no choices, a choice given twice, or an unknown criterion.
        ConvergenceError: no fit ended at an optimum.

    Reference:
        Biernacki, C., Celeux, G. & Govaert, G. (2000). Assessing a mixture model for clustering with the integrated
        completed likelihood. IEEE PAMI 22(7).

    Example:
        >>> import functools, torch, pyro, pyro.distributions as dist, ppl_em
        >>> def mixture(x, K):
        ...     loc = pyro.param("loc", torch.linspace(-1, 1, K))
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Categorical(torch.ones(K) / K))
        ...         pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)
        >>> x = torch.tensor([-5.1, -4.2, -4.9, 4.8, 5.3, 4.1, -5.5, 5.9])
        >>> ppl_em.select(lambda K: functools.partial(mixture, K=K), [2, 3], x).choice
        2
    """
    import pandas as pd

    from ppl_em.comparison import compare
    from ppl_em.fitting import fit
    from ppl_em.status import Status

    listed = list(choices)
    if criterion not in CRITERIA:
        raise PlanError(message("unknown criterion", value=criterion, hint=f"one of {', '.join(CRITERIA)}"))
    if not listed or len({*listed}) < len(listed):
        raise PlanError(message("choices must be given, each once", value=listed, hint="select(make, [1, 2, 3], x)"))
    results = {choice: fit(make_model(choice), *args, **options) for choice in listed}
    names = {str(choice): choice for choice in listed}
    by = criterion if criterion != "cv" else "bic"
    table = compare({name: results[choice] for name, choice in names.items()}, by)
    table = table.loc[list(names)].set_axis(pd.Index(listed, name="choice"))
    bad = (Status.DEGENERATE, Status.NON_FINITE, Status.NOT_MONOTONE)
    sound = [c for c in listed if results[c].status not in bad and results[c].log_likelihood is not None]
    if all(r.log_likelihood is None for r in results.values()):
        why = "these fits have bounds only"
        hint = "comparing result.objective of each, or estimate_log_likelihood()"
        raise PlanError(message(f"{criterion} needs exact log-likelihoods", why=why, hint=hint))
    if not sound:
        raise ConvergenceError(message("no choice was fitted to an optimum", hint="other starts or fewer components"))
    if criterion == "cv":
        kept = {n: v for n, v in options.items() if n not in ("init", "coords", "seed")}
        seed = options.get("seed", 0)
        held = {c: held_out_log_likelihood(make_model(c), args, folds, seed, **kept) for c in listed}
        table["cv"] = [held[c] for c in listed]
        if not any(math.isfinite(held[c]) for c in sound):
            raise ConvergenceError(message("every choice collapsed on some fold", hint="fewer folds or components"))
        return Selection(table, results, max(sound, key=held.__getitem__), criterion)
    values = {c: getattr(results[c], criterion) for c in sound}
    return Selection(table, results, min(sound, key=values.__getitem__), criterion)
