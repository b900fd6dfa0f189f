"""Predictive checks: statistics of the data against those of data drawn from the fit, latents drawn anew or given.

Reference:
    Gelman, A., Meng, X.-L. & Stern, H. (1996). Posterior predictive assessment of model fitness. Statistica Sinica 6.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor

from ppl_em.diagnostics.arrangement import MOST_COLUMNS, Arrangement, sequences_of_symbols
from ppl_em.diagnostics.copies import copies
from ppl_em.diagnostics.loo import loo_pit
from ppl_em.errors import PplEmError, message
from ppl_em.trace.footprint import isolated
from ppl_em.trace.missing import whole_numbers
from ppl_em.trace.run import Record, run_program

if TYPE_CHECKING:
    from ppl_em.result import FitResult

#: Predictive draws where the parameters are not drawn.
SAMPLES = 400
#: Draws in which latents are given (reconstructions): enough for a picture.
RECONSTRUCTIONS = 50
#: Sample statements run for predictive draws, and elements kept of them, at most.
LARGEST_RUN, LARGEST_KEPT = 2e4, 2e7


@dataclass(frozen=True, eq=False)
class SiteCheck:
    """One observed site, or a family ``x_0 … x_T`` of them.

    Args:
        name: the site's.
        columns: labels of the columns.
        observed: (N, C) what was observed, masked rows left out; NaN where it is missing. A datum whose weight is a
            count stands here as often as it says.
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

    def column(self, index: int, draws: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What was observed of one column (n,), and draws of the same elements (S, n).

        Args:
            index: which column.
            draws: :attr:`marginal` by default, or :attr:`reconstruction`.
        """
        there = ~self.observed[:, index].isnan()
        drawn = self.marginal if draws is None else draws
        return self.observed[there, index], drawn[:, there, index]


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
    program = result._plan_for(()).program
    elements = sum(s.value.tensor.numel() for s in program.sites.values() if s.role == "observed")
    affordable = int(min(LARGEST_RUN / max(1, len(program.sites)), LARGEST_KEPT / max(1, elements)))
    try:
        # Copies of a datum are drawn from neighbouring samples: these must have the same parameters.
        counts = copies(result._plan_for(()))
        draws = result._draws if counts is None and result._draws.reliable else None
    except PplEmError:
        counts, draws = None, None
    wanted = len(draws.coordinates) if draws is not None else SAMPLES
    if counts is not None:
        share = float(counts.double().mean())
        wanted, affordable = math.ceil(wanted * share), min(affordable, int(LARGEST_KEPT / (elements * share)))
    count = max(20, min(affordable, wanted))
    return result.predict(
        num_samples=count, latents="prior", params="point" if draws is None else "draws", seed=result.seed
    )


def predictive_check(result: FitResult) -> PredictiveCheck:
    """Predictive draws of all observed sites, arranged for comparison with the data.

    Raises:
        PplEmError: data have weights that are not counts.
    """
    source = result._source_for(())
    marginal = result._predictive_draws
    plan = result._plan_for(())
    counts = copies(plan)
    latent = plan.blocks or plan.approximated
    given = result.predict(num_samples=RECONSTRUCTIONS, seed=result.seed) if latent else {}
    with isolated(source.seed), torch.no_grad():
        records = run_program(source.model, source.args, source.kwargs, parameters=result._values).records
    observed = {n: r for n, r in records.items() if r.role == "observed" and n in marginal}
    sites = []
    for name, members in _families(observed).items():
        arrangement = Arrangement(observed, members, counts, plan.program.data_plate)
        first = observed[members[0]]
        seen = arrangement.of({m: observed[m].value[None] for m in members})[0]
        seen = torch.where(arrangement.hidden, torch.nan, seen)
        drawn = arrangement.of(marginal)
        again = arrangement.of(given) if given else drawn[:0]
        count = seen.shape[1]
        columns = next((tuple(c) for c in result._columns if len(c) == count), tuple(str(i) for i in range(count)))
        sequences = sequences_of_symbols(first)
        wide = first.fn.event_shape.numel() > MOST_COLUMNS and not sequences
        if sequences:
            columns = ("length", "different symbols")
        elif wide:
            columns = tuple(f"{what} of {first.fn.event_shape.numel()}" for what in ("mean", "spread"))
        discrete = sequences or (whole_numbers(first.fn) and not wide)
        sites.append(SiteCheck(name, columns if count > 1 else ("",), seen, drawn, again, discrete, len(members) > 1))
    reliable = counts is None and "_draws" in result.__dict__ and result._draws.reliable
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


def _names(site: SiteCheck) -> list[str]:
    return ["mean", "standard deviation", "smallest", "largest"] + (["lag-1 correlation"] if site.ordered else [])


def _statistics(site: SiteCheck, draws: Tensor, column: int) -> list[tuple[str, float, Tensor]]:
    """(name, of the data, of each draw)."""
    functions = [
        lambda x: x.mean(-1),
        lambda x: x.std(-1),
        lambda x: x.amin(-1),
        lambda x: x.amax(-1),
    ]
    seen, drawn = site.column(column, draws)
    found = [(n, float(f(seen)), f(drawn)) for n, f in zip(_names(site), functions, strict=False)]
    if site.ordered:
        series = site.observed[:, column]
        found.append(
            (_names(site)[-1], float(_lag(series)), _lag(draws[..., column].where(~series.isnan(), torch.nan)))
        )
    return found


def _lag(x: Tensor) -> Tensor:
    """Correlation of neighbours along the last dimension, pairs of which one is missing left out."""
    centred = x - x.nanmean(-1, keepdim=True)
    return (centred[..., 1:] * centred[..., :-1]).nansum(-1) / centred.square().nansum(-1).clamp_min(1e-300)


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
    if copies(result._plan_for(())) is not None:
        why = "predictive draws of copies of a datum have the same parameters"
        raise PplEmError(
            message("LOO-PIT is not available for data with counts as weights", why=why, hint="result.loo")
        )
    found = {}
    for site in result.predictive_check.sites:
        count = min(len(site.marginal), len(scored))
        if site.observed.shape[0] != scored.shape[1] or not result.predictive_check.with_uncertainty:
            continue
        values = loo_pit(site.observed, site.marginal[:count], scored[:count], seed=result.seed)
        there = ~site.observed.isnan()
        names = [" ".join(filter(None, (site.name, c))) for c in site.columns]
        found.update({name: Pit(values[there[:, i], i]) for i, name in enumerate(names)})
    return found
