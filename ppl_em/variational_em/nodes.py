"""Which global latents have a conjugate factor: each with its prior and the sites that it feeds, or a refusal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ppl_em.errors import PlanError, message
from ppl_em.ir import Factor, Link, Site
from ppl_em.mstep.conjugate import Pair, find_pair
from ppl_em.plan.plan import Plan
from ppl_em.variational_em.densities import SURROGATES
from ppl_em.variational_em.vectors import as_vectors

#: Priors by name of the family, and the family of the optimal factor.
FAMILIES: Mapping[str, str] = {
    "Dirichlet": "Dirichlet",
    "Beta": "Beta",
    "Uniform": "Beta",
    "Gamma": "Gamma",
    "Exponential": "Gamma",
    "Chi2": "Gamma",
    "InverseGamma": "InverseGamma",
    "Normal": "Normal",
    "MultivariateNormal": "MultivariateNormal",
    "Wishart": "Wishart",
}
#: Arguments of priors that may themselves be made of global latents.
HIERARCHICAL: Mapping[str, tuple[str, ...]] = {
    "Normal": ("loc", "scale"),
    "MultivariateNormal": ("loc", "precision_matrix"),
    "Gamma": ("rate",),
    "InverseGamma": ("rate",),
    "Exponential": ("rate",),
}
#: What the program does where conjugacy fails.
HINT = 'globals="point" (maximum a posteriori) or method="svi"'
#: Whose precision the scale of a likelihood is.
PRECISIONS = ("Gamma", "InverseGamma", "Wishart")
LOCATIONS = ("Normal", "MultivariateNormal")
#: Likelihoods of a whole vector of probabilities.
CATEGORIES = ("Categorical", "OneHotCategorical", "Multinomial")


@dataclass(frozen=True)
class Child:
    """A site that a global latent feeds.

    Args:
        site: the site, the prior of another global latent among them.
        argument: name of its argument.
        link: which element of the argument is which element of the latent.
        pair: the conjugate pair.
    """

    site: Site
    argument: str
    link: Link
    pair: Pair


@dataclass(frozen=True)
class Joint:
    """How a location shares a factor with its precision, as in the normal-gamma distribution.

    Args:
        partner: name of the precision.
        owner: by element (vector) of the location, the element (matrix) of the precision that belongs to it.
        ratio: by element (vector), the prior's precision relative to it.
    """

    partner: str
    owner: Tensor
    ratio: Tensor


@dataclass(frozen=True)
class Node:
    """A global latent with a factor of its own.

    Args:
        name: its name.
        family: of the factor, a key of :data:`ppl_em.variational_em.factors.HYPERPARAMETERS`.
        site: its prior.
        shape: of its value.
        children: what it feeds.
        joint: the factor that it shares with its precision, or None.
    """

    name: str
    family: str
    site: Site
    shape: tuple[int, ...]
    children: tuple[Child, ...]
    joint: Joint | None = None

    @property
    def entries(self) -> int:
        """Number of elements, vectors or matrices that have a factor each."""
        size = torch.Size(self.shape).numel()
        event = {"Dirichlet": 1, "MultivariateNormal": 1, "Wishart": 2}.get(self.family, 0)
        return size // (self.shape[-1] ** event if event else 1)


def find_nodes(plan: Plan) -> tuple[Node, ...]:
    """The global latents of a plan with their factors, in the order in which they are updated.

    Args:
        plan: a plan; its updates are not looked at.

    Raises:
        PlanError: one is not conjugate; the site, its family and the reason are named.
    """
    free = {n: None for n, p in plan.program.parameters.items() if p.origin == "site" and not p.frozen}
    priors = {s.point: s for s in plan.plain if s.point in free}
    nodes = {}
    for name in free:
        if name not in priors:
            raise _refusal(name, "", "its prior depends on a discrete latent")
        site = priors[name]
        family = _family(plan, name, site, set(free))
        if family == "Normal" and _feeds_vectors(plan, name):
            vectors = as_vectors(site)
            if vectors is None:
                raise _refusal(name, family, "it is the mean of vectors, and its prior is not one of whole vectors")
            site, family = vectors, "MultivariateNormal"
        shape = tuple(plan.program.parameters[name].init.shape)
        children = tuple(_children(plan, name, family, shape))
        nodes[name] = Node(name, family, site, shape, children)
    _check_others(plan, frozenset(nodes))
    paired = {n: replace(v, joint=_joint(v, nodes)) if v.family in LOCATIONS else v for n, v in nodes.items()}
    order = sorted(paired.values(), key=lambda v: v.family not in LOCATIONS)
    return tuple(order)


def _refusal(name: str, family: str, why: str) -> PlanError:
    what = 'no conjugate factor: EM(globals="variational") cannot be had'
    return PlanError(message(what, site=name, value=family or None, why=why, hint=HINT))


def _family(plan: Plan, name: str, site: Site, free: set[str]) -> str:
    family = site.family.__name__ if site.family is not None else "unknown"
    if family not in FAMILIES:
        raise _refusal(name, family, f"a {family} prior is conjugate to none of the likelihoods that are known")
    if family == "Uniform" and not _unit(site):
        raise _refusal(name, family, "a uniform prior is conjugate on the unit interval only")
    if not site.lowered:
        raise _refusal(name, family, "parameters reach its prior otherwise than through the arguments")
    if site.mask is not None or site.scale is not None:
        raise _refusal(name, family, "its prior is masked or scaled")
    estimated = {n for n, p in plan.program.parameters.items() if not p.frozen} - {name}
    for argument_name, argument in site.arguments.items():
        sources = {k.parameter for k in argument.links} | argument.sources
        if sources & (estimated - free):
            raise _refusal(name, family, f"'{argument_name}' of its prior is made of parameters that are estimated")
        if sources & free and argument_name not in HIERARCHICAL.get(family, ()):
            raise _refusal(name, family, f"'{argument_name}' of its prior is made of other latents")
    return FAMILIES[family]


def _feeds_vectors(plan: Plan, name: str) -> bool:
    """Whether a latent is the mean of multivariate normal sites."""
    fed = [s for s in plan.sites() if name in s.parameters and s.point != name and s.family is not None]
    return bool(fed) and all(s.family is not None and s.family.__name__ == "MultivariateNormal" for s in fed)


def _unit(site: Site) -> bool:
    low, high = (site.arguments.get(n) for n in ("low", "high"))
    zero = site.options.get("low") == 0 if low is None else bool((low.value.tensor == 0).all())
    one = site.options.get("high") == 1 if high is None else bool((high.value.tensor == 1).all())
    return zero and one


def _children(plan: Plan, name: str, family: str, shape: tuple[int, ...]) -> list[Child]:
    children = []
    for site in plan.sites():
        if name not in site.parameters or site.point == name:
            continue
        likelihood = site.family.__name__ if site.family is not None else "a factor"
        where = f"{likelihood} at '{site.members[0]}'"
        if site.family is None or not site.lowered:
            raise _refusal(name, family, f"it reaches {where} otherwise than element by element")
        if likelihood not in SURROGATES:
            raise _refusal(name, family, f"no expected log-density is known for {where}")
        linked = [(a, k) for a, argument in site.arguments.items() for k in argument.links if k.parameter == name]
        fed = {a for a, argument in site.arguments.items() if name in argument.sources}
        if not linked or fed - {a for a, _ in linked}:
            raise _refusal(name, family, f"it reaches {where} through a linear predictor")
        children += [_child(name, family, site, a, k, where, shape) for a, k in linked]
        if not bool(torch.isfinite(site.value.tensor.double()).all()):
            raise _refusal(name, family, f"values of {where} are missing or infinite")
    if not children:
        raise _refusal(name, family, "it feeds no site")
    return children


def _child(name: str, family: str, site: Site, argument: str, link: Link, where: str, shape: tuple[int, ...]) -> Child:
    assert site.family is not None
    sticks = link.transform.longer > 0
    two = family == "Beta" and site.family.__name__ in CATEGORIES and link.transform.name == "identity"
    prior = "Dirichlet" if family == "Beta" and (sticks or two) else family
    transform = "identity" if sticks else link.transform.name
    pair = find_pair(prior, site.family.__name__, argument, transform)
    if pair is None:
        how = "" if link.transform.name == "identity" else f", through {link.transform.name}"
        raise _refusal(name, family, f"a {family} factor is not conjugate to '{argument}' of {where}{how}")
    width = shape[-1] + link.transform.longer if shape else 0
    value = site.arguments[argument].value
    why = _sides(link) if two else _gather(family, sticks, value, link, width)
    if why is not None:
        raise _refusal(name, family, f"'{argument}' of {where} {why}")
    return Child(site, argument, link, pair)


def _gather(family: str, sticks: bool, value: Factor, link: Link, width: int) -> str | None:
    """Why an argument is no gather of whole elements of a latent, with an affine map that is conjugate; or None."""
    index, here = link.index, link.index >= 0
    plain = link.slope is None or bool(((link.slope == 1) | ~here).all())
    level = link.offset is None or bool(((link.offset == 0) | ~here).all())
    if family in ("Dirichlet", "MultivariateNormal") or sticks:
        if not (plain and level):
            return "is a multiple of it, or shifted"
        whole = here.all(-1) | ~here.any(-1)
        if family == "MultivariateNormal":
            size = index.shape[-1]
            order = (index % size == torch.arange(size, device=index.device)) | ~here
            one = index // size == (index // size)[..., :1]
            return None if bool(whole.all()) and bool((order & one).all()) else "is not made of whole vectors of it"
        zeros = value.tensor == 0
        return None if bool((here | zeros).all()) and _complete(index, width) else "is not made of whole rows of it"
    if family == "Wishart":
        return _matrices(index, here, link) if level else "is a shifted multiple of it"
    if family == "Beta" and link.slope is not None and link.offset is not None:
        same = (link.slope == 1) & (link.offset == 0)
        swapped = (link.slope == -1) & (link.offset == 1)
        return None if bool((same | swapped | ~here).all()) else "is neither it nor one minus it"
    if family in ("Gamma", "InverseGamma"):
        positive = link.slope is None or bool(((link.slope > 0) | ~here).all())
        return None if level and positive else "is not a positive multiple of it"
    return None


def _sides(link: Link) -> str | None:
    """Why an argument is no row of a probability and its complement, in either order; or None."""
    if link.slope is None or link.offset is None or link.index.shape[-1] != 2:
        return "is not made of it and its complement"
    one = (link.index[..., 0] == link.index[..., 1]) & (link.index[..., 0] >= 0)
    sides = (link.slope.sum(-1) == 0) & (link.slope.abs() == 1).all(-1) & (link.offset == (1 - link.slope) / 2).all(-1)
    return None if bool((one & sides).all()) else "is not made of it and its complement"


def _complete(index: Tensor, width: int) -> bool:
    """Whether each row of positions holds the elements of one probability vector, each once."""
    flat = index.reshape(-1, index.shape[-1])
    for row in torch.unique(flat, dim=0):
        used = row[row >= 0].sort().values
        if len(used) and (len(used) != width or bool((used.diff() != 1).any()) or int(used[0]) % width):
            return False
    return True


def _matrices(index: Tensor, here: Tensor, link: Link) -> str | None:
    size = index.shape[-1]
    flat, whole = index.reshape(-1, size**2), here.reshape(-1, size**2)
    if bool((whole.any(-1) != whole.all(-1)).any()):
        return "is not made of whole matrices of it"
    place = torch.arange(size**2, device=index.device)
    mirrored = place % size * size + place // size
    ordered = (flat % size**2 == place) | (flat % size**2 == mirrored) | ~whole
    one = (flat // size**2 == (flat // size**2)[:, :1]) | ~whole
    if not bool((ordered & one).all()):
        return "is not made of whole matrices of it"
    if link.slope is not None:
        slope = link.slope.reshape(-1, size**2)
        if not bool((((slope - slope[:, :1]).abs() <= 1e-9 * slope.abs()) & (slope > 0) | ~whole).all()):
            return "is not a positive multiple of it"
    return None


def _check_others(plan: Plan, names: frozenset[str]) -> None:
    """Parameters that are estimated share no site with a factor: their step would ignore its spread.

    Raises:
        PlanError: one does.
    """
    for name, parameter in plan.program.parameters.items():
        if name in names or parameter.frozen:
            continue
        for site in plan.sites():
            shared = sorted(site.parameters & names)
            if name in site.parameters and (shared or site.point in names):
                other = shared[0] if shared else site.point
                why = f"it shares the site '{site.members[0]}' with '{other}', which has a distribution"
                what = "a parameter cannot be maximised beside a factor"
                raise PlanError(message(what, site=name, why=why, hint=f"a conjugate prior for it, freeze, or {HINT}"))


def _joint(node: Node, nodes: Mapping[str, Node]) -> Joint | None:
    """The precision with which a location shares its factor: the prior's, and that of every site that it feeds."""
    scale = node.site.arguments.get("scale" if node.family == "Normal" else "precision_matrix")
    if scale is None or any(k.parameter in nodes for k in node.site.arguments["loc"].links):
        return None
    partners = {k.parameter for k in scale.links if k.parameter in nodes}
    if len(partners) != 1 or nodes[next(iter(partners))].family not in PRECISIONS:
        return None
    partner = next(iter(partners))
    link = next(k for k in scale.links if k.parameter == partner)
    if bool((link.index < 0).any()):
        return None
    value = node.site.value
    owner = _by_value(_entry(link, node.family), scale.value.dims, value, node)
    slope = torch.ones(link.index.shape) if link.slope is None else link.slope
    slope = _entry_of(slope, node.family).double()
    ratio = slope**-2 if node.family == "Normal" else slope
    joint = Joint(partner, owner, _by_value(ratio, scale.value.dims, value, node))
    return joint if all(_shares(c, node, joint) for c in node.children) else None


def _shares(child: Child, node: Node, joint: Joint) -> bool:
    """Whether a site's precision is, for each element of the location, the one that belongs to it."""
    if node.family not in LOCATIONS or child.site.point is not None:
        return False
    scale = child.site.arguments.get("scale" if node.family == "Normal" else "precision_matrix")
    link = None if scale is None else next((k for k in scale.links if k.parameter == joint.partner), None)
    if scale is None or link is None:
        return False
    index = child.link.index
    if node.family == "MultivariateNormal":
        index = torch.where(index[..., 0] >= 0, index[..., 0] // index.shape[-1], -1)
    loc = Factor(index, child.site.arguments["loc"].value.dims)
    mine, theirs = _broadcast(loc, Factor(_entry(link, node.family), scale.value.dims))
    here = mine >= 0
    return bool(((joint.owner[mine.clamp_min(0)] == theirs) | ~here).all())


def _broadcast(a: Factor, b: Factor) -> tuple[Tensor, ...]:
    dims = a.dims + tuple(d for d in b.dims if d not in a.dims)
    return tuple(torch.broadcast_tensors(a.align(dims), b.align(dims)))


def _entry(link: Link, family: str) -> Tensor:
    """Number of the element (or matrix) of a precision behind each element (or matrix) of an argument."""
    if family == "Normal":
        return link.index
    first = link.index[..., 0, 0]
    return torch.where(first >= 0, first // link.index.shape[-1] ** 2, -1)


def _entry_of(tensor: Tensor, family: str) -> Tensor:
    return tensor if family == "Normal" else tensor[..., 0, 0]


def _by_value(tensor: Tensor, dims: tuple[str, ...], value: Factor, node: Node) -> Tensor:
    """Entries by named dimensions spread over the elements (vectors) of a latent, flattened."""
    shape = [value.tensor.shape[i] for i in range(len(value.dims))]
    return Factor(tensor, dims).align(value.dims).expand(shape).reshape(-1)


def named(nodes: Sequence[Node]) -> dict[str, Any]:
    """Nodes by name."""
    return {v.name: v for v in nodes}
