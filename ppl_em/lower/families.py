"""Exponential families as inner products: log p(x | θ) = T(x)·η(θ) + a(θ) + h(x).

Reference:
    Wainwright, M. & Jordan, M. (2008). Graphical models, exponential families, and variational inference. Section 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions.utils import probs_to_logits

#: One-hot statistics of categorical observations are used up to this many columns.
MAX_ONE_HOT = 512
#: Squared standardised locations beyond this lose too many digits to the expansion of the square.
MAX_RATIO = {torch.float64: 1e6, torch.float32: 1e2}

Arguments = Mapping[str, Tensor]


@dataclass(frozen=True)
class SiteMoments:
    """Expected sufficient statistics of one site, as an M-step rule wants them.

    Args:
        count: (K, *E) total weight.
        centre: (*E, *event) what the data were centred at.
        first: (K, *E, *event) Σ w (x − centre).
        second: (K, *E, *event) Σ w (x − centre)², elementwise families.
        products: (K, *E, D, D) Σ w (x − centre)(x − centre)ᵀ, multivariate families.
        histogram: (K, *E, V) weight of each value, categorical families.
    """

    count: Tensor
    centre: Tensor
    first: Tensor | None = None
    second: Tensor | None = None
    products: Tensor | None = None
    histogram: Tensor | None = None


class Lowering:
    """How one family's density is an inner product; arrays are (data) × (E reinterpreted elements).

    Args:
        shape: (*E,) shape of the reinterpreted dimensions.
        centre: (E[, D]) subtracted from the data.
    """

    centred = True

    def __init__(self, shape: tuple[int, ...], centre: Tensor) -> None:
        self.shape, self.centre = shape, centre
        self.elements = math.prod(shape)

    @property
    def width(self) -> int:
        """Number of statistics F."""
        return self.elements

    def fill(self, x: Tensor, out: Tensor) -> None:
        """Write the statistics of data (n, E[, D]) to ``out`` (F, n)."""
        out.copy_(x.mT)

    def natural(self, arguments: Arguments) -> tuple[Tensor, Tensor] | None:
        """Natural parameters (K, F) and constants (K,) from arguments (K, E[, event]); None where digits would be lost."""
        raise NotImplementedError

    def base(self, x: Tensor) -> Tensor | None:
        """h(x) summed over E, (n,), or None for zero."""
        return None

    def moments(self, total: Tensor, count: Tensor) -> SiteMoments:
        """Expected statistics from Σ w T(x) (K, F) and Σ w (K,)."""
        k = len(count)
        first = total.reshape(k, *self.shape)
        return SiteMoments(self._wide(count), torch.zeros(self.shape, dtype=total.dtype), first)

    def _wide(self, count: Tensor) -> Tensor:
        return count.reshape(-1, *(1 for _ in self.shape)).expand(-1, *self.shape)


class NormalLowering(Lowering):
    """Normal: T = (x, x²) about the centre."""

    @property
    def width(self) -> int:
        """Number of statistics F."""
        return 2 * self.elements

    def fill(self, x: Tensor, out: Tensor) -> None:
        """Write the statistics of data (n, E[, D]) to ``out`` (F, n)."""
        half = out[: self.elements]
        torch.sub(x.mT, self.centre[:, None], out=half)
        torch.mul(half, half, out=out[self.elements :])

    def natural(self, arguments: Arguments) -> tuple[Tensor, Tensor] | None:
        """Natural parameters (K, F) and constants (K,); None where digits would be lost."""
        loc, scale = arguments["loc"] - self.centre, arguments["scale"]
        precision = scale**-2
        ratio = loc.square() * precision
        if not bool((ratio < MAX_RATIO[loc.dtype]).all()):
            return None
        constant = -0.5 * ratio - scale.log() - 0.5 * math.log(2 * math.pi)
        return torch.cat([loc * precision, -0.5 * precision], 1), constant.sum(1)

    def moments(self, total: Tensor, count: Tensor) -> SiteMoments:
        """Expected statistics from Σ w T(x) (K, F) and Σ w (K,)."""
        k = len(count)
        first = total[:, : self.elements].reshape(k, *self.shape)
        second = total[:, self.elements :].reshape(k, *self.shape)
        return SiteMoments(self._wide(count), self.centre.double().reshape(self.shape), first, second)


class MultivariateNormalLowering(Lowering):
    """Multivariate normal: T = (x, upper triangle of x xᵀ) about the centre."""

    def __init__(self, shape: tuple[int, ...], centre: Tensor) -> None:
        super().__init__(shape, centre)
        self.size = centre.shape[-1]
        self.row, self.column = torch.triu_indices(self.size, self.size)

    @property
    def width(self) -> int:
        """Number of statistics F."""
        return self.size + self.size * (self.size + 1) // 2

    def fill(self, x: Tensor, out: Tensor) -> None:
        """Write the statistics of data (n, E[, D]) to ``out`` (F, n)."""
        first = out[: self.size]
        torch.sub(x.reshape(len(x), self.size).mT, self.centre.reshape(-1)[:, None], out=first)
        at = self.size
        for d in range(self.size):  # the triangle row by row: contiguous products, no gather
            torch.mul(first[d], first[d:], out=out[at : at + self.size - d])
            at += self.size - d

    def natural(self, arguments: Arguments) -> tuple[Tensor, Tensor] | None:
        """Natural parameters (K, F) and constants (K,); None where digits would be lost."""
        loc = arguments["loc"].reshape(-1, self.size) - self.centre.reshape(-1)
        if "precision_matrix" in arguments:
            precision = arguments["precision_matrix"].reshape(-1, self.size, self.size)
            half_log_det = torch.linalg.cholesky(precision).diagonal(dim1=-2, dim2=-1).log().sum(-1)
        else:
            name = "scale_tril" if "scale_tril" in arguments else "covariance_matrix"
            value = arguments[name].reshape(-1, self.size, self.size)
            root = value if name == "scale_tril" else torch.linalg.cholesky(value)
            precision = torch.cholesky_inverse(root)
            half_log_det = -root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        linear = (precision @ loc[..., None])[..., 0]
        ratio = (linear * loc).sum(-1)
        if not bool((ratio < MAX_RATIO[loc.dtype]).all()):
            return None
        quadratic = -precision[:, self.row, self.column]
        quadratic = torch.where(self.row == self.column, 0.5 * quadratic, quadratic)
        constant = half_log_det - 0.5 * ratio - 0.5 * self.size * math.log(2 * math.pi)
        k = max(len(linear), len(quadratic))
        return torch.cat([linear.expand(k, -1), quadratic.expand(k, -1)], 1), constant.expand(k)

    def moments(self, total: Tensor, count: Tensor) -> SiteMoments:
        """Expected statistics from Σ w T(x) (K, F) and Σ w (K,)."""
        k = len(count)
        products = total.new_zeros(k, self.size, self.size)
        products[:, self.row, self.column] = total[:, self.size :]
        products[:, self.column, self.row] = total[:, self.size :]
        return SiteMoments(
            count,
            self.centre.double().reshape(-1),
            total[:, : self.size].reshape(k, self.size),
            products=products,
        )


class BernoulliLowering(Lowering):
    """Bernoulli: T = x."""

    centred = False

    def natural(self, arguments: Arguments) -> tuple[Tensor, Tensor] | None:
        """Natural parameters (K, F) and constants (K,); None where digits would be lost."""
        logits = _logits(arguments)
        return logits, -torch.nn.functional.softplus(logits).sum(1)


class PoissonLowering(Lowering):
    """Poisson: T = x, h = −log x!."""

    centred = False

    def natural(self, arguments: Arguments) -> tuple[Tensor, Tensor] | None:
        """Natural parameters (K, F) and constants (K,); None where digits would be lost."""
        rate = arguments["rate"]
        if not bool((rate > 0).all()):
            return None
        return rate.log(), -rate.sum(1)

    def base(self, x: Tensor) -> Tensor | None:
        """h(x) summed over E, (n,)."""
        return -torch.lgamma(x.double() + 1).sum(1)


class ExponentialLowering(Lowering):
    """Exponential: T = x."""

    centred = False

    def natural(self, arguments: Arguments) -> tuple[Tensor, Tensor] | None:
        """Natural parameters (K, F) and constants (K,); None where digits would be lost."""
        rate = arguments["rate"]
        return -rate, rate.log().sum(1)


class CategoricalLowering(Lowering):
    """Categorical: T = one-hot indicators."""

    centred = False
    categories = 0

    @property
    def width(self) -> int:
        """Number of statistics F."""
        return self.elements * self.categories

    def fill(self, x: Tensor, out: Tensor) -> None:
        """Write the statistics of data (n, E[, D]) to ``out`` (F, n)."""
        offset = torch.arange(self.elements, device=x.device)[:, None] * self.categories
        out.zero_().scatter_(0, x.mT.long() + offset, 1.0)

    def natural(self, arguments: Arguments) -> tuple[Tensor, Tensor] | None:
        """Natural parameters (K, F) and constants (K,); None where digits would be lost."""
        logits = log_probabilities(arguments)
        k = len(logits)
        return logits.expand(k, self.elements, self.categories).reshape(k, -1), logits.new_zeros(k)

    def moments(self, total: Tensor, count: Tensor) -> SiteMoments:
        """Expected statistics from Σ w T(x) (K, F) and Σ w (K,)."""
        histogram = total.reshape(len(count), *self.shape, self.categories)
        return SiteMoments(self._wide(count), torch.zeros(self.shape, dtype=total.dtype), histogram=histogram)


def _logits(arguments: Arguments) -> Tensor:
    if "logits" in arguments:
        return arguments["logits"]
    return probs_to_logits(arguments["probs"], is_binary=True)


def log_probabilities(arguments: Arguments) -> Tensor:
    """Normalised log-probabilities (…, V) of a categorical family's argument, its zeros clamped as Pyro clamps them."""
    if "logits" in arguments:
        return torch.log_softmax(arguments["logits"], -1)
    probs = arguments["probs"]
    return probs_to_logits(probs / probs.sum(-1, keepdim=True))


#: Families that are lowered, by class name.
LOWERINGS: dict[str, type[Lowering]] = {
    "Normal": NormalLowering,
    "MultivariateNormal": MultivariateNormalLowering,
    "Bernoulli": BernoulliLowering,
    "Poisson": PoissonLowering,
    "Exponential": ExponentialLowering,
    "Categorical": CategoricalLowering,
}
