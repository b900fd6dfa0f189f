"""Cross-validated log-likelihood: what a program says about data that it was not fitted to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ppl_em.arguments import as_tensors
from ppl_em.errors import PlanError, PplEmError, message

#: Folds, where none are asked for.
FOLDS = 5


def held_out_log_likelihood(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    folds: int = FOLDS,
    seed: int = 0,
    *,
    model_kwargs: Mapping[str, Any] | None = None,
    weights: Any = None,
    **options: Any,
) -> float:
    """Log-likelihood of each fold under the fit to the others, added up; −∞ where a fit collapses.

    The folds divide the elements of the data plate. Tensors whose first dimension has its size are divided with it; other
    arguments are the same in all folds.

    Args:
        model: a Pyro program.
        args: its positional arguments.
        folds: number of folds.
        seed: of the division and the fits.
        model_kwargs, weights, options: as for :func:`ppl_em.fit`.

    Raises:
        PlanError: there is no data plate to divide, fewer data than folds, or it cannot be told what belongs to a datum.

    Reference:
        Smyth, P. (2000). Model selection for probabilistic clustering using cross-validated likelihood. Statistics and
        Computing 10(1).
    """
    from ppl_em.fitting import fit
    from ppl_em.status import Status

    given, keywords = as_tensors(tuple(args)), as_tensors(dict(model_kwargs or {}))
    weighing = None if weights is None else torch.as_tensor(as_tensors(weights))
    name, size = _data_plate(model, given, keywords, seed)
    if not 2 <= folds <= size:
        raise PlanError(message("folds must lie between 2 and the number of data", value=folds, why=f"{size} data"))
    if not any(_belongs(v, size) for v in (*given, *keywords.values())):
        why = f"no argument is a tensor whose first dimension is the plate's size, {size}"
        raise PlanError(
            message("it cannot be told what belongs to a datum", site=name, why=why, hint='criterion="bic"')
        )
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    total = 0.0
    for k in range(folds):
        test = torch.zeros(size, dtype=torch.bool)
        test[order[k::folds]] = True
        inner, outer = (_part(given, keywords, size, chosen) for chosen in (~test, test))
        _confirm(model, *outer, name, int(test.sum()), seed)
        counts = None if weighing is None else weighing[~test]
        result = fit(model, *inner[0], model_kwargs=inner[1], weights=counts, seed=seed, **options)
        if result.status in (Status.DEGENERATE, Status.NON_FINITE, Status.NOT_MONOTONE):
            return -math.inf
        each = result.log_prob(*outer[0], **outer[1]).double()
        total += float((each if weighing is None else each * weighing[test]).sum())
    return total


def _data_plate(
    model: Callable[..., Any], args: tuple[Any, ...], keywords: Mapping[str, Any], seed: int
) -> tuple[str, int]:
    from ppl_em.fitting import explain

    program = explain(model, *args, model_kwargs=keywords, seed=seed).program
    if program.data_plate is None:
        hint = 'criterion="bic"'
        raise PlanError(message("cross-validation needs a data plate whose elements can be held out", hint=hint))
    return program.data_plate, program.plates[program.data_plate].size


def _confirm(
    model: Callable[..., Any], args: tuple[Any, ...], keywords: Mapping[str, Any], name: str, count: int, seed: int
) -> None:
    """The held-out part is a data set of its own, of the size that it should have."""
    why = "arguments whose first dimension has the plate's size were divided among the folds"
    try:
        found = _data_plate(model, args, keywords, seed)
    except (PplEmError, ValueError, RuntimeError, IndexError) as error:
        text = "the program does not run on a part of the data"
        raise PlanError(message(text, site=name, why=f"{why}: {str(error).splitlines()[0]}", hint='"bic"')) from error
    if found != (name, count):
        raise PlanError(message("the data plate does not follow the data", site=name, value=found[1], why=why))


def _belongs(value: Any, size: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == size


def _part(
    args: tuple[Any, ...], keywords: Mapping[str, Any], size: int, chosen: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (
        tuple(a[chosen] if _belongs(a, size) else a for a in args),
        {n: v[chosen] if _belongs(v, size) else v for n, v in keywords.items()},
    )
