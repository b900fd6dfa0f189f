"""Data that stand for several: weights that are counts, and what checks of the fit make of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ppl_em.errors import PplEmError, message
from ppl_em.plan.plan import Plan


def copies(plan: Plan) -> Tensor | None:
    """How many data each element of the outermost data plate stands for, (n,); None where each stands for itself.

    These are the weights of the fit, or the scale (``poutine.scale``) by datum. A scale that is the same for all data
    is none of them.

    Raises:
        PplEmError: the weights are not counts: there is nothing to draw, or to leave out, that they would stand for.
    """
    plate = plan.program.data_plate
    if plate is None:
        return None
    scales = [s.scale for s in plan.program.sites.values() if s.role == "observed" and s.scale is not None]
    scales = [s for s in scales if s.dims]
    if not scales:
        return None
    if any(s.dims != (plate,) for s in scales) or any(not torch.equal(s.tensor, scales[0].tensor) for s in scales):
        why = "they differ between sites, or vary along other plates than the data's"
        raise PplEmError(message("the weights are not counts of data", site=plate, why=why, hint="weights= of the fit"))
    weights = scales[0].expand({plate: plan.program.plates[plate].size}).tensor
    if bool((weights == weights[0]).all()):
        return None
    counts = weights.round().long()
    if not bool(torch.isclose(weights.double(), counts.double(), rtol=0, atol=1e-6).all()):
        why = "predictive checks and leave-one-out need data that can be drawn, or left out, one by one"
        shown = f"{float(weights[(weights != weights.round())][0]):g}"
        hint = "a fit without weights, or whole numbers"
        raise PplEmError(message("the weights are not counts", site=plate, value=shown, why=why, hint=hint))
    return counts


def number_of_data(plan: Plan) -> int | None:
    """Data in the outermost data plate, copies counted, those that are missing altogether not; None without a plate.

    Where observations lie in several plates side by side, the data of each are counted, and sites outside once each.
    """
    if plan.program.data_plate is not None:
        return _seen_in(plan, plan.program.data_plate)
    observed = [s for s in plan.program.sites.values() if s.role == "observed"]
    outermost = dict.fromkeys(s.plates[0] for s in observed if s.plates)
    if not outermost:
        return None
    return sum(_seen_in(plan, p) for p in outermost) + sum(not s.plates for s in observed)


def _seen_in(plan: Plan, plate: str) -> int:
    """Elements of a plate for which anything is observed, copies counted."""
    size = plan.program.plates[plate].size
    try:
        counts = copies(plan)
    except PplEmError:
        counts = None
    there = torch.zeros(size, dtype=torch.bool)
    for site in plan.program.sites.values():
        if site.role == "latent" or plate not in site.plates:
            continue
        if site.missing is None:
            there[:] = True
            break
        missing = site.missing.expand({plate: size})
        others = tuple(d for d in missing.dims if d != plate)
        there |= ~missing.align((plate, *others)).reshape(size, -1).all(-1).cpu()
    kept = there if counts is None else counts.cpu()[there]
    return max(1, int(kept.sum()))


def datum_of_rows(record: Any, plate: str, batch: torch.Size) -> Tensor | None:
    """Which datum each of a site's rows belongs to (batch dimensions flattened); None outside the plate."""
    dim = next((f.dim for f in record.frames if f.name == plate and f.dim is not None), None)
    if dim is None or -dim > len(batch):
        return None
    shape = [1] * len(batch)
    shape[dim] = batch[dim]
    return torch.arange(batch[dim]).reshape(shape).expand(batch).reshape(-1)


def repeated(draws: Tensor, counts: Tensor) -> Tensor:
    """Independent draws of every copy: rows (S, N, C) with row i repeated ``counts[i]`` times, (S, Σ counts, C).

    Copy j of a row takes the row's draw in the j-th next sample, so that the copies within a sample are independent.
    """
    row = torch.arange(len(counts)).repeat_interleave(counts)
    first = counts.cumsum(0) - counts
    turn = torch.arange(len(row)) - first.repeat_interleave(counts)
    sample = (torch.arange(len(draws))[:, None] + turn) % len(draws)
    return draws[sample, row]
