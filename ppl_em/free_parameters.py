"""How many free parameters a fit has: what AIC and BIC count."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.distributions import biject_to, constraints

from ppl_em.ir import Parameter, Program, Site

_SYMMETRIC = (constraints.positive_definite, constraints.positive_semidefinite, constraints.symmetric)


def degrees_of_freedom(parameter: Parameter) -> int:
    """Dimension of the set that a parameter lives in: a simplex of K has K − 1, a covariance D(D+1)/2."""
    value: Tensor = parameter.init
    constraint = parameter.constraint
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    if parameter.frozen:
        return 0
    if constraint in _SYMMETRIC or constraint in (constraints.lower_cholesky, constraints.lower_triangular):
        size = value.shape[-1]
        return value.numel() // size**2 * (size * (size + 1) // 2)
    if constraint is constraints.corr_cholesky:
        size = value.shape[-1]
        return value.numel() // size**2 * (size * (size - 1) // 2)
    try:
        return biject_to(constraint).inv(value).numel()
    except NotImplementedError:
        return value.numel()


def num_parameters(program: Program, sites: Mapping[str, Site] | None = None) -> int:
    """Free parameters of a program; an unnormalised probability vector has one direction that changes nothing."""
    total = sum(degrees_of_freedom(p) for p in program.parameters.values())
    return total - redundant_directions(program, sites)


def redundant_directions(program: Program, sites: Mapping[str, Site] | None = None) -> int:
    """Directions of parameter space that change no density: one for each unnormalised probability vector."""
    redundant: dict[str, int] = {}
    for site in (sites or program.sites).values():
        for argument in site.arguments.values():
            for link in argument.links:
                parameter = program.parameters[link.parameter]
                if link.transform.name in ("softmax", "log_softmax", "normalise") and not parameter.frozen:
                    redundant[link.parameter] = parameter.init.numel() // parameter.init.shape[-1]
    return sum(redundant.values())
