"""Newton's method for coefficients of linear predictors: the Hessian is assembled from designs (IRLS).

Reference:
    Green, P. (1984). Iteratively reweighted least squares for maximum likelihood estimation, and some robust and
    resistant alternatives. JRSS B 46(2).
    Jordan, M. & Jacobs, R. (1994). Hierarchical mixtures of experts and the EM algorithm. Neural Computation 6(2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ppl_em.ir import Argument, Factor, Site
from ppl_em.ir.design import Design
from ppl_em.mstep.newton import ARMIJO, HALVINGS, ROUNDING

#: Newton steps at most in one M-step.
MAX_STEPS = 25
#: Predicted gain, relative to max(1, |Q|), at which the inner iteration stops.
GAIN = 1e-13
#: Curvature below this part of the largest, after scaling, is none: such directions stay where they are.
NULL = 1e-11
#: A converged Newton step that still moves a linear predictor by this much has no maximum ahead.
RUNAWAY = 0.3
#: Linear predictors beyond this have probabilities of zero and one to rounding.
SATURATED = 30.0

#: Maps a site and its log-factor to its part of Q.
Score = Callable[[Site, Factor], Tensor]
Parameters = Mapping[str, Tensor]


@dataclass(frozen=True)
class Predictor:
    """One linear predictor of a site: one argument, or one category of it.

    Args:
        places: (G, F) positions of its coefficients among those solved for, −1 for none.
        features: (G or 1, N, F).
    """

    places: Tensor
    features: Tensor

    def by_cell(self, cell: int) -> tuple[Tensor, Tensor]:
        """Features (N, f) and positions (f,) of the coefficients that are solved for."""
        known = self.places[cell] >= 0
        features = self.features[cell if len(self.features) > 1 else 0]
        return (features, self.places[cell]) if bool(known.all()) else (features[:, known], self.places[cell][known])


class Coefficients:
    """Coefficients that reach their sites through linear predictors alone.

    Args:
        sites: these sites; every argument is evaluable without a run.
        names: parameters solved for.
        parameters: current values of all parameters.
    """

    def __init__(self, sites: Sequence[Site], names: Sequence[str], parameters: Parameters) -> None:
        self.sites, self.names, self.parameters = tuple(sites), tuple(names), dict(parameters)
        self.start: dict[str, int] = {}
        self.total = 0
        for n in names:
            self.start[n] = self.total
            self.total += parameters[n].numel()

    def maximise(self, score: Score) -> dict[str, Tensor]:
        """The maximiser of Q over the coefficients, from their current values; Q never falls.

        Args:
            score: a site's part of Q from its log-factor.
        """
        theta = torch.cat([self.parameters[n].detach().double().reshape(-1) for n in self.names])
        for _ in range(MAX_STEPS):
            value, slope, hessian = self._expand(score, theta)
            direction, gain = _ascent(slope, hessian)
            if not math.isfinite(value):
                break
            if gain <= GAIN * max(1.0, abs(value)):  # the last step is below what Q can judge
                polished = theta + direction
                return self._values(polished if self._q(score, polished) >= value - _slack(value) else theta)
            moved = self._search(score, theta, value, direction, gain)
            if moved is None:
                break
            theta = moved
        return self._values(theta)

    def runaway(self, score: Score) -> tuple[str, float] | None:
        """The parameter that runs off to infinity and how far it has come, None where there is a maximum.

        Where outcomes are separated by their covariates the gain dwindles, but Newton's steps do not: the linear
        predictor moves on by about one at each.

        Reference:
            Albert, A. & Anderson, J. (1984). On the existence of maximum likelihood estimates in logistic regression
            models. Biometrika 71(1).
        """
        theta = torch.cat([self.parameters[n].detach().double().reshape(-1) for n in self.names])
        _, slope, hessian = self._expand(score, theta)
        direction, gain = _ascent(slope, hessian)
        if gain < math.inf and bool(direction.any()):
            found = self._moves(theta, direction, 0.0)
            if found is not None and found[2] > RUNAWAY:
                return found[:2]
        for direction in _flat(hessian):  # so far out that nothing changes any more, to rounding
            found = self._moves(theta, direction, SATURATED)
            if found is not None and self._matters(score, theta, direction * SATURATED / found[2]):
                return found[:2]
        return None

    def _matters(self, score: Score, theta: Tensor, back: Tensor) -> bool:
        """Whether Q falls on the way back to moderate predictors; what it never depends on is no escape."""
        here = self._q(score, theta)
        return any(abs(self._q(score, theta + sign * back) - here) > 1e-6 for sign in (-1.0, 1.0))

    def _moves(self, theta: Tensor, direction: Tensor, least: float) -> tuple[str, float, float] | None:
        """The parameter that a step changes most, the largest predictor that it moves, and how far it moves it.

        Args:
            theta: present values, (P,).
            direction: the step, (P,).
            least: predictors smaller than this do not count.
        """
        step = self._values(theta + direction)
        far, moved = 0.0, 0.0
        for site in self.sites:
            for argument in site.arguments.values():
                design = argument.design
                if design is None or not set(design.parameters) & set(self.names):
                    continue
                now = design.predictor(self.parameters)
                change = (design.predictor({**self.parameters, **step}) - now).abs().nan_to_num(0.0, 0.0, 0.0)
                now = now.abs().nan_to_num(0.0, 0.0, 0.0)
                change = torch.where(now >= least, change, 0.0)
                if float(change.max()) > max(moved, 1e-9):
                    moved, far = float(change.max()), float(now.max())
        sizes = {n: float((step[n] - self.parameters[n]).abs().max()) for n in self.names}
        return (max(sizes, key=lambda n: sizes[n]), far, moved) if moved > 0 else None

    def _values(self, theta: Tensor) -> dict[str, Tensor]:
        result = {}
        for n in self.names:
            old = self.parameters[n]
            piece = theta[self.start[n] : self.start[n] + old.numel()]
            result[n] = piece.reshape(old.shape).to(old.dtype)
        return result

    @torch.no_grad()
    def _q(self, score: Score, theta: Tensor) -> float:
        values = {**self.parameters, **self._values(theta)}
        return sum(float(score(s, s.log_factor(values))) for s in self.sites)

    def _search(self, score: Score, theta: Tensor, value: float, direction: Tensor, gain: float) -> Tensor | None:
        """The longest of the halved steps that gains enough."""
        slack, length = _slack(value), 1.0
        for _ in range(HALVINGS):
            trial = theta + length * direction
            reached = self._q(score, trial)
            if reached >= value + 2 * ARMIJO * length * gain - (slack if gain <= 100 * slack else 0.0):
                return trial
            length /= 2
        return None

    def _expand(self, score: Score, theta: Tensor) -> tuple[float, Tensor, Tensor]:
        """Q, its gradient (P,) and its Hessian (P, P)."""
        values = {**self.parameters, **self._values(theta)}
        slope, hessian = theta.new_zeros(self.total), theta.new_zeros(self.total, self.total)
        total = 0.0
        for site in self.sites:
            total += self._add(site, score, values, slope, hessian)
        return total, slope, hessian

    def _add(self, site: Site, score: Score, values: Parameters, slope: Tensor, hessian: Tensor) -> float:
        designs = {
            n: a.design
            for n, a in site.arguments.items()
            if a.design is not None and set(a.design.parameters) & set(self.names)
        }
        cells = _union([(d.cells, d.shape[: len(d.cells)]) for d in designs.values()])
        data = _union([(d.data, d.shape[len(d.cells) :]) for d in designs.values()])
        with torch.enable_grad():
            leaves, arguments = [], dict(site.arguments)
            for n, design in designs.items():
                start = _arranged(design, design.predictor(values).detach(), cells, data)
                fixed = torch.isinf(start)  # structural zeros do not move
                leaf = torch.where(fixed, 0.0, start).requires_grad_(True)
                leaves.append(leaf)
                value = design.transform.forward(leaf)
                value = torch.where(fixed, design.transform.forward(start), value) if bool(fixed.any()) else value
                arguments[n] = Argument(Factor(value, (*cells, *data)))
            q = score(site, replace(site, arguments=arguments).log_factor(values))
            first = torch.autograd.grad(q, leaves, create_graph=True)
            pieces = _components(first, list(designs.values()))
            second = [_components(_derivative(p, leaves), list(designs.values())) for p in pieces]
        predictors = [p for d in designs.values() for p in self._predictors(d, cells, data)]
        count = math.prod(cells.values())
        gradients = [p.detach().double().reshape(count, -1) for p in pieces]
        curvatures = [[c.detach().double().reshape(count, -1) for c in row] for row in second]
        for cell in range(count):
            _accumulate(cell, predictors, gradients, curvatures, slope, hessian)
        return float(q.detach())

    def _predictors(self, design: Design, cells: Mapping[str, int], data: Mapping[str, int]) -> list[Predictor]:
        """The linear predictors of one argument, over the cells and data of the whole site."""
        lookup = []
        for p in design.parameters:
            at = self.start.get(p)
            count = self.parameters[p].numel()
            lookup.append(torch.full((count,), -1) if at is None else torch.arange(at, at + count))
        places = torch.where(design.index >= 0, torch.cat(lookup)[design.index.clamp_min(0)], -1)
        rows = _numbers(design.cells, design.shape[: len(design.cells)], cells)
        columns = _numbers(design.data, design.shape[len(design.cells) :], data)
        features = design.features.double()
        if len(columns) != features.shape[1]:
            features = features[:, columns]
        categories = max(design.event, 1)
        result = []
        for e in range(categories):
            chosen = rows * categories + e
            result.append(Predictor(places[chosen], features if len(features) == 1 else features[chosen]))
        return result


def _slack(value: float) -> float:
    """Changes of Q that are rounding."""
    return ROUNDING * max(1.0, abs(value))


def _union(dims: Sequence[tuple[tuple[str, ...], tuple[int, ...]]]) -> dict[str, int]:
    return {d: n for names, sizes in dims for d, n in zip(names, sizes, strict=True)}


def _numbers(dims: tuple[str, ...], sizes: tuple[int, ...], union: Mapping[str, int]) -> Tensor:
    """For each element of the union's grid, its position in the grid of some of the dimensions."""
    grid = Factor(torch.arange(math.prod(sizes)).reshape(sizes), dims)
    return grid.align(tuple(union)).expand(tuple(union.values())).reshape(-1)


def _arranged(design: Design, predictor: Tensor, cells: Mapping[str, int], data: Mapping[str, int]) -> Tensor:
    """A linear predictor over all cells and data of its site, categories last."""
    own = Factor(design.arranged(predictor), design.cells + design.data)
    wide = own.align((*cells, *data))
    event = wide.shape[len(cells) + len(data) :]
    return wide.expand(*cells.values(), *data.values(), *event)


def _components(tensors: Sequence[Tensor], designs: Sequence[Design]) -> list[Tensor]:
    """One tensor for each linear predictor: vectors of categories taken apart."""
    pieces: list[Tensor] = []
    for tensor, design in zip(tensors, designs, strict=True):
        pieces += list(tensor.unbind(-1)) if design.event else [tensor]
    return pieces


def _derivative(piece: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Each element's second derivatives: densities are elementwise, so that a sum's derivative holds them all."""
    if not piece.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    parts = torch.autograd.grad(piece.sum(), leaves, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(leaf) if p is None else p for p, leaf in zip(parts, leaves, strict=True)]


def _accumulate(
    cell: int,
    predictors: Sequence[Predictor],
    gradients: Sequence[Tensor],
    curvatures: Sequence[Sequence[Tensor]],
    slope: Tensor,
    hessian: Tensor,
) -> None:
    """Add Xᵀ g and Xᵀ W X of one cell."""
    pieces = [p.by_cell(cell) for p in predictors]
    for a, (x, at) in enumerate(pieces):
        slope.index_add_(0, at, x.mT @ gradients[a][cell])
        for b, (other, there) in enumerate(pieces[: a + 1]):
            product = x.mT @ (curvatures[a][b][cell][:, None] * other)
            hessian.index_put_((at[:, None], there[None, :]), product, accumulate=True)
            if b < a:
                hessian.index_put_((there[:, None], at[None, :]), product.mT, accumulate=True)


def _flat(hessian: Tensor) -> Tensor:
    """Directions (n, P) along which Q has no curvature, to rounding."""
    if not bool(torch.isfinite(hessian).all()):
        return hessian[:0]
    size = hessian.diagonal().abs().sqrt()
    size = torch.where(size > 0, size, 1.0)
    values, vectors = torch.linalg.eigh(-(hessian + hessian.mT) / 2 / size[:, None] / size[None, :])
    return (vectors[:, values.abs() <= NULL * values.abs().max()] / size[:, None]).mT


def _ascent(slope: Tensor, hessian: Tensor) -> tuple[Tensor, float]:
    """Newton's direction where Q is concave, an ascent direction where not; and the gain that it predicts."""
    if not bool(torch.isfinite(slope).all() & torch.isfinite(hessian).all()):
        return torch.zeros_like(slope), 0.0
    size = hessian.diagonal().abs().sqrt()
    size = torch.where(size > 0, size, 1.0)
    scaled = -(hessian + hessian.mT) / 2 / size[:, None] / size[None, :]
    factor, bad = torch.linalg.cholesky_ex(scaled)
    if int(bad) == 0 and float(factor.diagonal().min()) ** 2 > 1e-8:
        direction = torch.cholesky_solve((slope / size)[:, None], factor)[:, 0] / size
    else:
        values, vectors = torch.linalg.eigh(scaled)
        live = values.abs() > NULL * values.abs().max()
        along = vectors.mT @ (slope / size)
        # A slope without curvature (a density whose second derivative is lost at a kink) is followed as it is.
        flat = torch.where(along.abs() > 1e-8 * along.abs().max(), along, 0.0)
        along = torch.where(live, along / torch.where(live, values.abs(), 1.0), flat)
        direction = vectors @ along / size
    return direction, float(slope @ direction) / 2
