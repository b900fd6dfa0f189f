"""The conformance check of an M-step rule: weighted maximum likelihood, whatever the weights and ties."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ppl_em.mstep import Argument, Block, WeightedSample, stationarity, weighted_mle

#: Largest scaled residual of the KKT conditions at a proposal.
STATIONARY = 1e-7
#: Fall of the log-likelihood that is rounding, relative to 1 + its size.
ROUNDING = 1e-9
#: Rows (states) and data of a random sample.
ROWS, DATA = 4, 60

Draw = Callable[[torch.Generator, int], dict[str, Tensor]]


def check_rule(family: type, draw: Draw, *, seeds: Iterable[int] = range(10), **options: Any) -> None:
    """Hold a registered rule against the definition of a weighted maximum-likelihood estimate.

    On random samples with random weights, with and without ties between rows: a proposal raises the weighted
    log-likelihood and (unless the rule only promises ascent) satisfies its KKT conditions; doubling all weights and
    reordering the data change nothing.

    Args:
        family: the distribution; a rule must be registered for it.
        draw: (generator, n) to valid values of the free arguments by name, (n, *event) each.
        seeds: of the samples.
        options: further arguments of the family, held fixed.

    Raises:
        AssertionError: a law is broken.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> check_rule(dist.Poisson, lambda g, n: {"rate": 1 + 3 * torch.rand(n, generator=g)}, seeds=range(2))
    """
    for seed in seeds:
        for tied in (False, True):
            generator = torch.Generator().manual_seed(seed)
            truth, start = draw(generator, ROWS), draw(generator, ROWS)
            values, weights = _data(family, truth, options, generator)
            _check(family, start, options, values, weights, tied, f"{family.__name__}, seed {seed}, tied {tied}")


def _check(
    family: type,
    start: dict[str, Tensor],
    options: dict[str, Any],
    values: Tensor,
    weights: Tensor,
    tied: bool,
    where: str,
) -> None:
    sample = _sample(start, options, values, weights, tied)
    before = float(sample.log_likelihood(family))
    weighted_mle[family](sample)
    after = float(sample.log_likelihood(family))
    assert after >= before - ROUNDING * (1 + abs(before)), f"the rule descends from {before} to {after}: {where}"
    if weighted_mle[family].exact == "ascent":
        return
    residual = stationarity(sample, family)
    assert residual <= STATIONARY, f"the proposal is not stationary (residual {residual:.1e}): {where}"
    doubled = _sample(start, options, values, 2 * weights, tied)
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(1))
    reordered = _sample(start, options, values[order], weights[:, order], tied)
    for other, what in ((doubled, "the total weight"), (reordered, "the order of the data")):
        weighted_mle[family](other)
        for name, proposal in sample.proposals.items():
            same = torch.allclose(proposal, other.proposals[name], rtol=1e-6, atol=1e-8)
            assert same, f"{name} depends on {what}: {where}"


def _data(
    family: type, truth: dict[str, Tensor], options: dict[str, Any], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Data (N, *event) drawn from the rows in turn, and random weights (rows, N)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        rows = torch.arange(DATA) % ROWS
        arguments = {n: v.double()[rows] for n, v in truth.items()}
        values = family(**arguments, **options).sample()
    weights = torch.rand(ROWS, DATA, generator=generator, dtype=torch.float64)
    return values, weights + 1.0 * (torch.arange(ROWS)[:, None] == rows)


def _sample(
    start: dict[str, Tensor], options: dict[str, Any], values: Tensor, weights: Tensor, tied: bool
) -> WeightedSample:
    cells = torch.arange(ROWS) // 2 if tied else torch.arange(ROWS)
    arguments = {n: Argument(v.double()[cells], cells) for n, v in start.items()}
    for name, value in options.items():
        arguments[name] = Argument(torch.as_tensor(value, dtype=torch.float64).expand(ROWS))
    event_dim = values.dim() - 1
    return WeightedSample(arguments, (Block(weights, values, torch.arange(ROWS)),), ROWS, event_dim)
