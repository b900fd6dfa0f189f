"""Which point-estimated latents are combined with all their likelihoods in closed form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_em.ir import Argument, Link, Program, Site
from ppl_em.mstep.conjugate import Pair, find_pair
from ppl_em.mstep.conjugate_posterior import canonical
from ppl_em.plan.structured import structured

#: Priors whose entries are whole vectors or matrices of the parameter, with their number of dimensions.
EVENT_DIMS: Mapping[str, int] = {"Dirichlet": 1, "MultivariateNormal": 1, "Wishart": 2}
#: Pairs of scalar priors that a vector prior takes as well, element by element.
_ELEMENTWISE: Mapping[str, str] = {"MultivariateNormal": "Normal"}


@dataclass(frozen=True)
class Evidence:
    """One site whose data update a prior.

    Args:
        site: its name.
        argument: the argument that the parameter feeds.
        link: how.
        pair: what the data add to the prior.
    """

    site: str
    argument: str
    link: Link
    pair: Pair


@dataclass(frozen=True)
class Conjugacy:
    """A point-estimated latent whose prior all its likelihoods are conjugate to.

    Args:
        parameter: its name.
        prior: name of the conjugate family that its prior belongs to; ``"MultivariateNormal"`` for independent normal
            elements whose likelihood couples them.
        evidence: the sites that it feeds.
    """

    parameter: str
    prior: str
    evidence: tuple[Evidence, ...]

    @property
    def family(self) -> str:
        """The pairs in print, such as ``Dirichlet–Categorical``."""
        return ", ".join(dict.fromkeys(f"{self.prior}–{e.pair.likelihood}" for e in self.evidence))

    @property
    def locates(self) -> bool:
        """Whether it is a location: estimated before scales."""
        return self.prior in ("Normal", "MultivariateNormal")


def recognise(name: str, program: Program, sites: Sequence[Site]) -> Conjugacy | str:
    """The conjugacy of a point-estimated latent with the sites that it feeds, or why there is none.

    Args:
        name: of the latent.
        program: gives its prior and its shape.
        sites: all sites of the plan that it feeds, stacks in place of their members; its prior among them.
    """
    own = next((s for s in sites if s.point == name), None)
    if own is None or own.family is None:
        return "it has a prior of no known family"
    shown = own.family.__name__
    prior = prior_family(name, program, sites)
    if prior is None:
        return f"it has a prior ({shown}) that is not combined with its likelihood in closed form"
    children = [s for s in sites if s is not own]
    if not children:
        return "no likelihood depends on it"
    lifted = prior == "Normal" and any(_is_vector_location(s, name) for s in children)
    prior = "MultivariateNormal" if lifted else prior
    evidence = []
    for site in children:
        found = _evidence(name, prior, site, program.parameters[name].init.shape)
        if isinstance(found, str):
            return f"it has a prior ({shown}) that is not combined with its likelihood in closed form: {found}"
        evidence.append(found)
    return Conjugacy(name, prior, tuple(evidence))


def prior_family(name: str, program: Program, sites: Sequence[Site]) -> str | None:
    """The conjugate family of a latent's prior, None where it is of no such family or is masked, scaled or computed.

    Args:
        name: of the latent.
        program: gives the latent's shape.
        sites: sites of the plan, the prior among them.
    """
    own = next((s for s in sites if s.point == name), None)
    if own is None or own.family is None or not own.lowered or own.mask is not None or own.scale is not None:
        return None
    if any(name in a.sources for a in own.arguments.values()):
        return None
    start: dict[str, Tensor] = {n: p.init for n, p in program.parameters.items()}
    with torch.no_grad():
        found = canonical(own.distribution(start))
    moving = any(a.sources for a in own.arguments.values())
    if found is None or (moving and own.family.__name__ == "Uniform"):
        return None
    return type(found).__name__


def _is_vector_location(site: Site, name: str) -> bool:
    loc = site.arguments.get("loc")
    vectors = site.family is not None and site.family.__name__ == "MultivariateNormal"
    return vectors and loc is not None and name in loc.sources


def _evidence(name: str, prior: str, site: Site, shape: Sequence[int]) -> Evidence | str:
    if site.family is None or site.role == "factor" or structured(site):
        return f"it feeds '{site.name}' otherwise than as the argument of a known family"
    through = frozenset().union(*(a.sources for a in site.arguments.values()))
    if not site.lowered and not site.parameters <= through:
        return f"parameters reach '{site.name}' otherwise than through its arguments"
    fed = [(n, a) for n, a in site.arguments.items() if name in a.sources or _links(a, name)]
    if len(fed) != 1:
        return f"it feeds several arguments of '{site.name}'" if fed else f"it reaches '{site.name}' unseen"
    argument, value = fed[0]
    links = _links(value, name)
    if len(links) != 1 or value.opaque or value.design is not None:
        return f"it reaches '{site.name}' through a computation that is not an element-by-element link"
    family, transform = site.family.__name__, links[0].transform.name
    pair = find_pair(prior, family, argument, transform)
    if prior == "Beta" and links[0].transform.longer:  # breaks of a stick: the counts of its pieces
        pair, shape = find_pair("Dirichlet", family, argument), links[0].transform.image_shape(torch.Size(shape))
    if pair is None and prior in _ELEMENTWISE:
        pair = find_pair(_ELEMENTWISE[prior], family, argument, transform)
    if pair is None:
        return f"{argument} of {family} has no conjugate prior of this family"
    affine = links[0].slope is not None
    if affine and pair.affine is None:
        return f"{argument} of '{site.name}' is a multiple of it"
    if pair.prior in EVENT_DIMS and not _whole_entries(links[0], pair.prior if prior == "Beta" else prior, shape):
        return f"{argument} of '{site.name}' is a part of it"
    return Evidence(site.name, argument, links[0], pair)


def _links(argument: Argument, name: str) -> list[Link]:
    return [k for k in argument.links if k.parameter == name]


def _whole_entries(link: Link, prior: str, shape: Sequence[int]) -> bool:
    """Whether each vector (matrix) of the argument is one vector (matrix) of the parameter, its elements in order.

    Categories may stand in any order.
    """
    dims = EVENT_DIMS[prior]
    size = 1
    for n in tuple(shape)[len(shape) - dims :]:
        size *= n
    if link.index.dim() < dims or tuple(link.index.shape[link.index.dim() - dims :]) != tuple(shape[-dims:]):
        return False
    index = link.index.reshape(-1, size)
    if prior == "Dirichlet":  # rows without any of its elements do not count
        index = index[(index >= 0).any(-1)]
    if bool((index < 0).any()) or bool((index // size != index[:, :1] // size).any()):
        return False
    order = index % size
    if prior == "Dirichlet":
        order = order.sort(-1).values
    return bool((order == torch.arange(size, device=order.device)).all())
