"""Predictive checks: statistics of the data against those of data drawn from the fit, latents drawn anew or given.

Reference:
    Gelman, A., Meng, X.-L. & Stern, H. (1996). Posterior predictive assessment of model fitness. Statistica Sinica 6.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from ppl_em.diagnostics.loo import loo_pit
from ppl_em.distributions.structured import is_structured
from ppl_em.trace.footprint import isolated
from ppl_em.trace.run import Record, run_program

if TYPE_CHECKING:
    from ppl_em.result import FitResult

#: Draws in which latents are given (reconstructions): enough for a picture.
RECONSTRUCTIONS = 50
#: Sample statements run for predictive draws, and elements kept of them, at most.
LARGEST_RUN, LARGEST_KEPT = 2e4, 2e7
#: Columns of vector-valued observations that are looked at one by one; of wider ones, their mean and spread.
MOST_COLUMNS = 12


@dataclass(frozen=True, eq=False)
class SiteCheck:
    """One observed site, or a family ``x_0 … x_T`` of them.

    Args:
        name: the site's.
        columns: labels of the columns.
        observed: (N, C) what was observed, masked rows left out.
        marginal: (S, N, C) draws with latents drawn anew.
        reconstruction: (R, N, C) draws with latents from their posterior; R is 0 where there are none.
        discrete: whole numbers.
        ordered: rows are in time order.
    """

    name: str
    columns: tuple[str, ...]
    observed: Tensor
    marginal: Tensor
    reconstruction: Tensor
    discrete: bool
    ordered: bool


@dataclass(frozen=True, eq=False)
class PredictiveCheck:
    """Predictive draws of all observed sites.

    Args:
        sites: one by one.
        with_uncertainty: parameters were drawn too.
    """

    sites: tuple[SiteCheck, ...]
    with_uncertainty: bool

    def table(self) -> pd.DataFrame:
        """One row for each statistic: observed, predicted mean, two-sided tail probability, for both kinds of draws."""
        rows = []
        for site in self.sites:
            for c, column in enumerate(site.columns):
                for name, seen, marginal in _statistics(site, site.marginal, c):
                    row = {"site": site.name, "column": column, "statistic": name, "observed": seen}
                    row |= {"predicted": float(marginal.mean()), "p": tail_probability(seen, marginal)}
                    rows.append(row)
                if len(site.reconstruction):
                    for row, (_, seen, given) in zip(
                        rows[-len(_names(site)) :], _statistics(site, site.reconstruction, c), strict=True
                    ):
                        row |= {"reconstructed": float(given.mean()), "p_reconstructed": tail_probability(seen, given)}
        return pd.DataFrame(rows)


def tail_probability(observed: float, drawn: Tensor) -> float:
    """Two-sided share of draws as extreme as what was observed; small where the model does not reproduce it."""
    tolerance = 1e-9 * (1 + abs(observed))
    above = float((drawn >= observed - tolerance).double().mean())
    below = float((drawn <= observed + tolerance).double().mean())
    return min(1.0, 2 * min(above, below))


def predictive_draws(result: FitResult) -> dict[str, Tensor]:
    """Draws of every observed site with latents drawn anew, one at each draw of the parameters where there are such.

    Returns:
        By site, (S, ...); S is the number of parameter draws, or fewer where that would be too costly.
    """
    from ppl_em.errors import PplEmError

    program = result._plan_for(()).program
    elements = sum(s.value.tensor.numel() for s in program.sites.values() if s.role == "observed")
    affordable = int(min(LARGEST_RUN / max(1, len(program.sites)), LARGEST_KEPT / max(1, elements)))
    try:
        draws = result._draws if result._draws.reliable else None
    except PplEmError:
        draws = None
    count = max(20, min(affordable, len(draws.coordinates) if draws is not None else 400))
    return result.predict(
        num_samples=count, latents="prior", params="point" if draws is None else "draws", seed=result.seed
    )


def predictive_check(result: FitResult) -> PredictiveCheck:
    """Predictive draws of all observed sites, arranged for comparison with the data."""
    source = result._source_for(())
    marginal = result._predictive_draws
    plan = result._plan_for(())
    latent = plan.blocks or plan.approximated
    given = result.predict(num_samples=RECONSTRUCTIONS, seed=result.seed) if latent else {}
    with isolated(source.seed), torch.no_grad():
        records = run_program(source.model, source.args, source.kwargs, parameters=result._values).records
    observed = {n: r for n, r in records.items() if r.role == "observed" and n in marginal}
    sites = []
    for name, members in _families(observed).items():
        parts = [_rows(observed[m], observed[m].value[None]) for m in members]
        keep = torch.cat([_kept(observed[m]) for m in members])
        first = observed[members[0]]
        seen = torch.cat(parts, 1)[0][keep]
        drawn = torch.cat([_rows(observed[m], marginal[m]) for m in members], 1)[:, keep]
        again = torch.cat([_rows(observed[m], given[m]) for m in members], 1)[:, keep] if given else drawn[:0]
        count = seen.shape[1]
        columns = next((tuple(c) for c in result._columns if len(c) == count), tuple(str(i) for i in range(count)))
        sequences = _sequences(first)
        wide = first.fn.event_shape.numel() > MOST_COLUMNS and not sequences
        if sequences:
            columns = ("length", "different symbols")
        elif wide:
            columns = tuple(f"{what} of {first.fn.event_shape.numel()}" for what in ("mean", "spread"))
        discrete = sequences or (bool(getattr(first.fn.support, "is_discrete", False)) and not wide)
        sites.append(SiteCheck(name, columns if count > 1 else ("",), seen, drawn, again, discrete, len(members) > 1))
    reliable = "_draws" in result.__dict__ and result._draws.reliable
    return PredictiveCheck(tuple(sites), reliable)


def _families(records: Mapping[str, Record]) -> dict[str, list[str]]:
    """Sites ``x_0 … x_T`` together, in the order of their numbers."""
    found: dict[str, list[tuple[int, str]]] = {}
    for name in records:
        match = re.fullmatch(r"(.*?)[_\[]?(\d+)\]?", name)
        stem, number = (match.group(1), int(match.group(2))) if match and match.group(1) else (name, 0)
        found.setdefault(stem, []).append((number, name))
    families = {stem: [n for _, n in sorted(members)] for stem, members in found.items()}
    result: dict[str, list[str]] = {}
    for stem, members in families.items():
        alike = len({records[m].fn.event_shape for m in members}) == 1
        if len(members) > 1 and alike:
            result[stem] = members
        else:
            result.update({m: [m] for m in members})
    return result


def _rows(record: Any, values: Tensor) -> Tensor:
    """Values (S, *batch, *event) as (S, rows, columns)."""
    if _sequences(record):
        return _of_sequences(record.fn, values)
    event = record.fn.event_shape.numel() if len(record.fn.event_shape) > 0 else 1
    rows = values.detach().double().reshape(len(values), -1, event)
    return rows if event <= MOST_COLUMNS else torch.stack([rows.mean(-1), rows.std(-1)], -1)


def _sequences(record: Any) -> bool:
    """Whether the values are padded sequences of symbols, with a hidden structure behind them."""
    return is_structured(record.fn) and not record.value.is_floating_point() and len(record.fn.event_shape) == 1


def _of_sequences(fn: Any, values: Tensor) -> Tensor:
    """Length and number of different symbols of each sequence (S, *batch, L), as (S, rows, 2)."""
    lengths = fn.lengths_of(values)
    inside = torch.arange(values.shape[-1], device=values.device) < lengths.unsqueeze(-1)
    ordered = values.where(inside, -1).sort(-1).values
    new = torch.cat([ordered[..., :1] >= 0, (ordered.diff(dim=-1) > 0) & (ordered[..., 1:] >= 0)], -1)
    features = torch.stack([lengths.expand(values.shape[:-1]), new.sum(-1)], -1)
    return features.double().reshape(len(values), -1, 2)


def _kept(record: Any) -> Tensor:
    """Rows that the mask lets count."""
    batch = record.value.shape[: record.value.dim() - len(record.fn.event_shape)]
    if not isinstance(record.mask, Tensor):
        return torch.full((batch.numel(),), record.mask is not False)
    return record.mask.expand(batch).reshape(-1)


def _names(site: SiteCheck) -> list[str]:
    return ["mean", "standard deviation", "smallest", "largest"] + (["lag-1 correlation"] if site.ordered else [])


def _statistics(site: SiteCheck, draws: Tensor, column: int) -> list[tuple[str, float, Tensor]]:
    """(name, of the data, of each draw)."""
    functions = [
        lambda x: x.mean(-1),
        lambda x: x.std(-1),
        lambda x: x.amin(-1),
        lambda x: x.amax(-1),
        _lag,
    ]
    seen, drawn = site.observed[:, column], draws[..., column]
    return [(n, float(f(seen)), f(drawn)) for n, f in zip(_names(site), functions, strict=False)]


def _lag(x: Tensor) -> Tensor:
    """Correlation of neighbours along the last dimension."""
    centred = x - x.mean(-1, keepdim=True)
    return (centred[..., 1:] * centred[..., :-1]).sum(-1) / centred.square().sum(-1).clamp_min(1e-300)


@dataclass(frozen=True, eq=False)
class Pit:
    """Probability integral transforms of the data under leave-one-out prediction.

    Args:
        values: (n,) uniform if the predictions are calibrated.
    """

    values: Tensor

    @property
    def distance(self) -> float:
        """Largest distance of their distribution function from the uniform one."""
        ordered = self.values.sort().values
        steps = torch.arange(len(ordered) + 1, dtype=torch.float64) / len(ordered)
        return float(torch.maximum((steps[1:] - ordered).max(), (ordered - steps[:-1]).max()))

    @property
    def band(self) -> float:
        """Distance that uniform values exceed with a probability of 5 % (Dvoretzky, Kiefer and Wolfowitz; Massart)."""
        return math.sqrt(math.log(2 / 0.05) / (2 * len(self.values)))


def loo_pits(result: FitResult) -> dict[str, Pit]:
    """LOO-PIT of each column of each observed site that lives in the data plate alone; empty where there is none.

    Raises:
        PplEmError: leave-one-out is not to be had.
    """
    scored = result._draw_log_likelihoods
    result.loo  # noqa: B018 - raises where the draws cannot be trusted
    found = {}
    for site in result.predictive_check.sites:
        count = min(len(site.marginal), len(scored))
        if site.observed.shape[0] != scored.shape[1] or not result.predictive_check.with_uncertainty:
            continue
        values = loo_pit(site.observed, site.marginal[:count], scored[:count], seed=result.seed)
        found.update({" ".join(filter(None, (site.name, c))): Pit(values[:, i]) for i, c in enumerate(site.columns)})
    return found
