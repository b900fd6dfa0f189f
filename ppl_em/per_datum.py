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
    factors = site_factors(plan, parameters)
    plate = plan.program.data_plate
    blocks = [(set(e.block.plates), e.engine.log_z(e.block, factors)) for e in plan.blocks]
    plain = [s for s in plan.plain if s.point is None]
    separate = plate is not None and all(plate in p for p, _ in blocks) and all(plate in s.plates for s in plain)
    keep = (plate,) if separate and plate is not None else ()
    sizes = {p: plan.program.plates[p].size for p in plan.program.plates}
    total = Factor(torch.zeros((), dtype=torch.float64), ())
    for plates, log_z in blocks:
        wide = log_z.expand({p: sizes[p] for p in plates})
        total = total + wide.map(Tensor.double).sum([d for d in wide.dims if d not in keep])
    for site in plain:
        wide = factors[site.name].expand({p: sizes[p] for p in site.plates})
        total = total + wide.map(Tensor.double).sum([d for d in wide.dims if d not in keep])
    return total.align(keep)
