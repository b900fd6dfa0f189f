"""Starts that are given as factors: hyperparameters by name, or those of a result that is continued."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ppl_em.errors import ModelError, message
from ppl_em.plan.plan import Plan
from ppl_em.variational_em.factors import HYPERPARAMETERS, RELATIVE
from ppl_em.variational_em.network import Network

_NAMES = {h for hypers in HYPERPARAMETERS.values() for h in hypers} | set(RELATIVE)


def split_hyperparameters(values: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Given values in two: those of the program's own names, and hyperparameters (``"weights.concentration"``)."""
    hyper = {n: v.double() for n, v in values.items() if "." in n and n.rpartition(".")[2] in _NAMES}
    return {n: v for n, v in values.items() if n not in hyper}, hyper


def check_hyperparameters(plan: Plan, given: Mapping[str, Tensor]) -> None:
    """Hyperparameters that are given are those of the plan's factors, all of them, and inside their constraints.

    Raises:
        ModelError: they are not; one is named.
    """
    if not given:
        return
    network = Network(plan)
    start = {n: p.init for n, p in plan.program.parameters.items()}
    own = network.write(network.priors(start))
    constraints = {f"{n}.{h}": c for n, v in network.nodes.items() for h, c in network.hyperparameters(v).items()}
    for name in [*sorted(set(given) - set(own)), *own]:
        if name not in own or name not in given:
            what = "init names no hyperparameter of a factor" if name not in own else "init leaves a hyperparameter out"
            raise ModelError(message(what, site=name, hint=f"all of {sorted(own)}"))
        if given[name].shape != own[name].shape:
            why = f"the factor's own has shape {tuple(own[name].shape)}"
            shape = tuple(given[name].shape)
            raise ModelError(message("the initial value has another shape", site=name, value=shape, why=why))
        if not bool(torch.as_tensor(constraints[name].check(given[name])).all()):
            why = f"its constraint is {constraints[name]}"
            raise ModelError(message("the initial value is outside the constraint", site=name, why=why))
