"""Proposing probabilities, whichever of ``probs`` and ``logits`` the program was written with."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_em.mstep.sample import NoClosedForm, WeightedSample


def log_floor(sample: WeightedSample, name: str) -> float:
    """The logarithm of the least positive number of an argument's dtype: stands for log 0."""
    dtype = sample.args[name].value.dtype
    return float(torch.tensor(torch.finfo(dtype).tiny, dtype=torch.float64).log())


def propose_success(
    sample: WeightedSample, successes: Tensor, trials: Tensor, names: tuple[str, str] = ("probs", "logits")
) -> None:
    """Propose the probability of success, successes / trials by cell.

    Args:
        sample: the sample.
        successes: expected number of successes by row, (R,).
        trials: expected number of trials by row, (R,).
        names: the argument's name as a probability and as log-odds.
    """
    for name in names:
        if not sample.free(name):
            continue
        ties = sample.ties(name)
        won, tried = ties.pool_elements(successes), ties.pool_elements(trials)
        probs = won / tried.clamp(min=torch.finfo(torch.float64).tiny)
        kept = ties.gather(sample.cell_values(name))
        if name == names[1]:
            lost = (tried - won).clamp(min=0.0)
            floor = log_floor(sample, name)
            probs = (won.log() - lost.log()).clamp(floor, -floor)
        sample.propose_elements(name, torch.where(tried > 0, probs, kept))


def propose_simplex(sample: WeightedSample, counts: Tensor) -> None:
    """Propose category probabilities from expected counts by row (R, K), with ties and structural zeros.

    Tied elements of one cell share their probability equally. As logits, fixed elements (a reference
    category) keep their values and the others are expressed relative to them.
    """
    for name in ("probs", "logits"):
        if sample.free(name):
            _propose_simplex(sample, name, counts)


def _propose_simplex(sample: WeightedSample, name: str, counts: Tensor) -> None:
    ties, old = sample.ties(name), sample.cell_values(name)
    pooled = sample.pool(name, counts)
    free = ~ties.fixed
    if ties.patterned:
        pooled = _share_equally(pooled, ties.groups, free)
    weight = old.exp() if name == "logits" else old
    anchor = torch.where(free, 0.0, weight).sum(-1, keepdim=True)
    anchored = torch.where(free, 0.0, pooled).sum(-1, keepdim=True)
    total = torch.where(free, pooled, 0.0).sum(-1, keepdim=True)
    if name == "probs" and bool((anchor > 0).any()):
        raise NoClosedForm("some category probabilities are fixed at values other than zero")
    # With fixed logits, exp(logit) of the others is their count in units of the fixed ones' count.
    has_anchor = (anchor > 0) & (anchored > 0)
    probs = torch.where(has_anchor, pooled * anchor / anchored.clamp(min=1e-300), pooled / total.clamp(min=1e-300))
    if name == "logits":
        floor = log_floor(sample, name)
        probs = probs.log().clamp(floor, -floor)
    keep = (total <= 0) | ((anchor > 0) & (anchored <= 0))
    sample.propose(name, torch.where(keep, old, probs))


def _share_equally(pooled: Tensor, groups: Tensor, free: Tensor) -> Tensor:
    """Give tied elements of a cell their mean count; refuse ties between cells."""
    cells, size = pooled.shape
    cell = torch.arange(cells, device=pooled.device)[:, None].expand(cells, size)
    number = int(groups.max()) + 1 if groups.numel() else 0
    first = torch.full((max(number, 1),), -1, dtype=torch.long, device=pooled.device)
    first[groups[free]] = cell[free]
    if bool((first[groups[free]] != cell[free]).any()):
        raise NoClosedForm("one parameter element is a category probability of several distributions")
    total = pooled.new_zeros(max(number, 1)).index_add(0, groups[free], pooled[free])
    members = pooled.new_zeros(max(number, 1)).index_add(0, groups[free], torch.ones_like(pooled[free]))
    shared = pooled.clone()
    shared[free] = (total / members)[groups[free]]
    return shared
