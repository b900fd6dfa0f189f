"""Global latents with conjugate factors: each with its prior and the sites that it feeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_em.ir import Link, Site
from ppl_em.mstep.conjugate import Pair

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
