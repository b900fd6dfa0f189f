"""Observed sites whose density sums over a hidden structure: grammars, alignments.

Such a site is an exact block of its own. Its tables of probabilities have a closed form, whatever else feeds
the site: Q separates into one term for each table once the structure's expected counts are known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_em.distributions.structured import HiddenCost, StructuredDistribution, is_structured
from ppl_em.errors import PlanError, message
from ppl_em.ir import Program, Site

#: Maps from a parameter to a table under which normalised counts are the maximum of Q.
CLOSED = ("identity", "softmax", "log_softmax", "normalise", "log")


@dataclass(frozen=True)
class StructuredSite:
    """An observed site whose hidden structure is summed inside its density.

    Args:
        name: of the (stacked) site.
        family: name of its distribution's class.
        counted: arguments whose use the E-step counts.
        sizes: size of each batch dimension by name: one structure for each combination.
        flops, bytes: predicted cost of one E-step.
    """

    name: str
    family: str
    counted: tuple[str, ...]
    sizes: Mapping[str, int]
    flops: float
    bytes: float


def structured(site: Site) -> bool:
    """Whether a site's density sums over a hidden structure."""
    return site.role == "observed" and site.family is not None and is_structured(site.family)


def batch_sizes(site: Site, sizes: Mapping[str, int]) -> dict[str, int]:
    """Size of each batch dimension of a site, in order, those inside the site included.

    Args:
        site: the site.
        sizes: size of every latent and plate as this site has it.
    """
    known = dict(sizes)
    for factor in (site.value, *(a.value for a in site.arguments.values())):
        known.update({d: n for d, n in factor.sizes.items() if n > known.get(d, 0)})
    return {d: known[d] for d in (*site.dims, *site.inner)}


def describe(program: Program, site: Site, sizes: Mapping[str, int], max_bytes: float) -> StructuredSite:
    """The plan's entry for a structured site.

    Raises:
        PlanError: its charts do not fit into the budget.
    """
    assert site.family is not None and issubclass(site.family, StructuredDistribution)
    batch = batch_sizes(site, sizes)
    start: dict[str, Tensor] = {n: p.init for n, p in program.parameters.items()}
    with torch.no_grad():
        distribution = site.distribution(start)
    event = site.value.tensor.shape[len(site.value.dims) :]
    cost: HiddenCost = distribution.hidden_cost(torch.Size((*batch.values(), *event)))
    if cost.bytes > max_bytes:
        why = f"it would need {cost.bytes:.1e} bytes, the budget is {max_bytes:.1e}"
        hint = "shorter or fewer sequences, or a larger budget with Auto(memory_bytes=...)"
        raise PlanError(message("the hidden structure does not fit into memory", site=site.name, why=why, hint=hint))
    return StructuredSite(site.name, site.family.__name__, site.family.counted, batch, cost.flops, cost.bytes)


def obstacle(name: str, sites: Sequence[Site]) -> str | None:
    """Why a parameter that feeds a structured site has no closed form, or None if it has.

    Args:
        name: of the parameter.
        sites: all sites that it feeds.
    """
    families = {s.family for s in sites}
    if len(families) > 1 or not all(structured(s) for s in sites):
        return f"it feeds sites of different families ({', '.join(sorted(f.__name__ for f in families if f))})"
    for site in sites:
        assert site.family is not None and issubclass(site.family, StructuredDistribution)
        fed = {n: a for n, a in site.arguments.items() if name in a.sources}
        for argument_name, argument in fed.items():
            links = [k for k in argument.links if k.parameter == name]
            if argument_name not in site.family.counted or not links or argument.opaque:
                return f"it reaches '{site.name}' through a computation that is not an element-by-element link"
            if any(k.transform.name not in CLOSED or k.slope is not None for k in links):
                return f"'{argument_name}' is a function of it that normalised counts do not maximise"
        if not fed:
            return f"it reaches '{site.name}' other than through its arguments"
    return None


def elements(entry: StructuredSite) -> int:
    """Number of hidden structures."""
    return math.prod(entry.sizes.values())
