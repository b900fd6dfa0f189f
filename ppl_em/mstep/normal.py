"""Normal families: location by weighted least squares, scale by the mean squared deviation."""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_em.mstep.registry import weighted_mle
from ppl_em.mstep.sample import WeightedSample

TINY = torch.finfo(torch.float64).tiny


def settle(
    sample: WeightedSample, step: Callable[[], None], outer: str, inner: str = "loc", max_rounds: int = 500
) -> None:
    """Repeat a conditional maximisation over all rows until nothing moves beyond rounding.

    One round is exact where the maximisers separate; where ties entangle them (one mean, several variances)
    the rounds ascend to the joint maximiser. They touch statistics by row alone, not the data.

    Args:
        sample: the sample.
        step: proposes the inner argument given the outer one, then the outer given the inner.
        outer: the argument that the step takes from its last value (a scale).
        inner: the argument whose maximiser may depend on it (a location).
        max_rounds: bound on the number of rounds.

    Reference: Meng, Rubin (1993), Maximum likelihood estimation via the ECM algorithm.
    """
    if separates(sample, inner, outer):
        return step()
    for _ in range(max_rounds):
        before = {name: value.clone() for name, value in sample.proposals.items()}
        step()
        if before.keys() == sample.proposals.keys() and all(
            torch.allclose(before[name], value, rtol=1e-14, atol=0.0, equal_nan=True)
            for name, value in sample.proposals.items()
        ):
            return


def separates(sample: WeightedSample, inner: str, outer: str) -> bool:
    """Whether the maximiser of ``inner`` is the same whatever ``outer`` is: all rows of a cell share one."""
    if not sample.free(inner) or not sample.free(outer):
        return True
    ties, other = sample.ties(inner), sample.ties(outer)
    return not ties.patterned and bool((ties.spread(ties.first(other.cells)) == other.cells).all())


def propose_location(
    sample: WeightedSample, precision: Tensor, residual: Callable[[Tensor], Tensor], count: Tensor
) -> None:
    """Propose loc = Σ n x̄/σ² / Σ n/σ² over its ties, one Newton step of a quadratic.

    Args:
        sample: the sample.
        precision: 1/σ² by row, (R, *event), in any common unit.
        residual: maps loc by row to Σ w (x − loc) by row.
        count: total weight by row, broadcastable to ``precision``.
    """
    ties = sample.ties("loc")
    weight = ties.pool_elements(precision * count).clamp(min=TINY)
    for _ in range(2):  # the second step removes the rounding of a far start
        loc = sample.rows("loc")
        old = ties.gather(sample.cell_values("loc"))
        sample.propose_elements("loc", old + ties.pool_elements(precision * residual(loc)) / weight)


def root_mean(sample: WeightedSample, name: str, squares: Tensor) -> Tensor:
    """Return sqrt(Σ squares / Σ w) by parameter element of ``name``, kept above underflow."""
    ties = sample.ties(name)
    mean = ties.pool_elements(squares) / ties.pool_elements(sample.count()).clamp(min=TINY)
    return mean.sqrt().clamp(min=torch.finfo(sample.args[name].value.dtype).tiny ** 0.5)


def fit_location_scale(
    sample: WeightedSample, residual: Callable[[Tensor], Tensor], deviation: Callable[[Tensor], Tensor]
) -> None:
    """Location, then scale, of a normal sample given Σ w (x − loc) and Σ w (x − loc)² by row."""

    def step() -> None:
        if sample.free("loc"):
            scale = sample.rows("scale")
            # Relative to the largest scale, so that nothing under- or overflows.
            precision = (scale / scale.max()).clamp(min=1e-150).pow(-2)
            propose_location(sample, precision, residual, sample.count())
        if sample.free("scale"):
            squares = deviation(sample.rows("loc")).clamp(min=0.0)
            sample.propose_elements("scale", root_mean(sample, "scale", squares))

    settle(sample, step, outer="scale")


@weighted_mle.register(dist.Normal)
def normal(sample: WeightedSample) -> None:
    """Set loc to the mean, scale² to the mean squared deviation."""
    fit_location_scale(sample, sample.residual, sample.deviation)


@weighted_mle.register(dist.HalfNormal)
def half_normal(sample: WeightedSample) -> None:
    """Set scale² to mean square."""
    if sample.free("scale"):
        squares = sample.sum("x²", torch.square)
        sample.propose_elements("scale", root_mean(sample, "scale", squares))


@weighted_mle.register(dist.LogNormal)
def log_normal(sample: WeightedSample) -> None:
    """Set loc and scale to mean and standard deviation of log x."""
    logs = WeightedSample(
        sample.args,
        tuple(type(block)(block.weights, block.values.double().log(), block.rows) for block in sample.blocks),
        sample.num_rows,
    )
    fit_location_scale(logs, logs.residual, logs.deviation)
    sample.proposals.update(logs.proposals)
