"""Log marginal likelihood of each datum."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ppl_em.em.e_step import site_factors
from ppl_em.ir import Factor
from ppl_em.plan.plan import Plan


@torch.no_grad()
def log_prob(plan: Plan, parameters: Mapping[str, Tensor]) -> Tensor:
    """Log-likelihood by element of the outermost data plate, in nats; a scalar where the data are not separate.

    Scales and weights are left out: this is the density of each datum, whatever it counted in the fit.
    """
    return contributions(plan, parameters)


def separate(plan: Plan) -> bool:
    """Whether the likelihood is a product over the elements of the outermost data plate."""
    plate = plan.program.data_plate
    plain = [s for s in plan.plain if s.point is None]
    inside = all(plate in e.block.plates for e in plan.blocks) and all(plate in s.plates for s in plain)
    return plate is not None and inside


def contributions(
    plan: Plan,
    parameters: Mapping[str, Tensor],
    *,
    scaled: bool = False,
    factors: Mapping[str, Factor] | None = None,
) -> Tensor:
    """As :func:`log_prob`, differentiable.

    Args:
        plan: the plan.
        parameters: constrained values.
        scaled: with scales and weights applied, as each datum counted in the fit.
        factors: log-factor of each site; None evaluates them at these values.
    """
    factors = site_factors(plan, parameters) if factors is None else factors
    plate = plan.program.data_plate
    keep = (plate,) if plate is not None and separate(plan) else ()
    sizes = {p: plan.program.plates[p].size for p in plan.program.plates}
    terms = [(e.block.plates, e.engine.log_z(e.block, factors), e.block.scale) for e in plan.blocks]
    terms += [(s.plates, factors[s.name], s.scale) for s in plan.plain if s.point is None]
    total = Factor(torch.zeros((), dtype=torch.float64), ())
    for plates, factor, scale in terms:
        wide = factor.expand({p: sizes[p] for p in plates}).map(Tensor.double)
        if scaled and scale is not None:
            wide = wide * scale.map(Tensor.double)
        total = total + wide.sum([d for d in wide.dims if d not in keep])
    return total.align(keep)
