"""Split and merge: out of an optimum where two components share a cluster and one covers two.

A move merges two states with much the same data and splits a third along the principal axis of its own. Their number
stays. It is a start for EM; a move that leads higher is kept, and moves are made from there.

Reference:
    Ueda, N., Nakano, R., Ghahramani, Z. & Hinton, G. E. (2000). SMEM algorithm for mixture models. Neural Computation
    12(9). Splits along the principal axis replace the random ones.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from ppl_em.em.e_step import EStep, e_step
from ppl_em.em.loop import Machine
from ppl_em.em.start import labelled_site, site_features, weights_of
from ppl_em.em.updates import Parameters
from ppl_em.ir import Factor

#: Moves that are tried from one optimum.
CANDIDATES = 5
#: Share of a datum that goes to its own half when a state is split.
OWN = 0.9
#: Logarithms of smaller shares are taken at this one.
TINY = 1e-12


def moves(machine: Machine, parameters: Parameters) -> list[Parameters]:
    """Starts that differ from an optimum by one merge and one split; none for fewer than three states.

    Args:
        machine: plan and updaters, of EM on values (not on factors of variational Bayes).
        parameters: constrained values at the optimum.
    """
    plan = machine.plan
    found = next(((b, u) for b in plan.blocks if (u := labelled_site(b.block)) is not None), None)
    if type(machine) is not Machine or found is None:
        return []
    entry, (site, state, dims) = found
    if entry.block.sizes[state] < 3:
        return []
    e = e_step(plan, parameters)
    shape = [entry.block.sizes[d] for d in dims]
    sizes = {d: entry.block.sizes[d] for d in (*dims, state)}
    shares = e.weights[site.name].factor.expand(sizes).align((*dims, state)).reshape(-1, sizes[state]).double()
    features = site_features(entry.block, site, dims)
    starts = []
    for pair, third in _ranked(shares, features)[:CANDIDATES]:
        moved = _moved(shares, features, pair, third).reshape(*shape, -1)
        soft = Factor(moved.clamp_min(TINY).log().to(torch.get_default_dtype()), (*dims, state))
        weights = {**e.weights, **weights_of(entry.engine, entry.block, {site.name: soft})}
        try:
            starts.append(machine.maximise(parameters, EStep(0.0, 0.0, weights)))
        except (ValueError, RuntimeError):  # a half is degenerate
            continue
    return starts


def _ranked(shares: Tensor, features: Tensor) -> list[tuple[tuple[int, int], int]]:
    """Pairs to merge with a state to split: those first whose data overlap most and whose own are scattered most."""
    count = shares.shape[1]
    length = shares.square().sum(0).sqrt().clamp_min(TINY)
    overlap = (shares.T @ shares) / (length[:, None] * length)
    mass = shares.sum(0).clamp_min(TINY)
    means = (shares.T @ features) / mass[:, None]
    scatter = (shares.T @ features.square()).sum(1) - mass * means.square().sum(1)
    chosen = []
    for a, b in combinations(range(count), 2):
        light = 1 - float(torch.minimum(mass[a], mass[b]) / mass.sum())  # an almost empty state may go as well
        for c in set(range(count)) - {a, b}:
            chosen.append(((float(overlap[a, b]) + 0.1 * light) * float(scatter[c]), (a, b), c))
    return [(pair, c) for _, pair, c in sorted(chosen, key=lambda m: -m[0])]


def _moved(shares: Tensor, features: Tensor, pair: tuple[int, int], third: int) -> Tensor:
    """Shares (n, K) after the move: the pair in its first column, the halves in its second and in the third's."""
    own = shares[:, third]
    mean = (own @ features) / own.sum().clamp_min(TINY)
    centred = features - mean
    _, axes = torch.linalg.eigh((centred * own[:, None]).T @ centred)
    half = torch.where(centred @ axes[:, -1] > 0, OWN, 1 - OWN)
    moved = shares.clone()
    moved[:, pair[0]] = shares[:, pair[0]] + shares[:, pair[1]]
    moved[:, pair[1]] = own * half
    moved[:, third] = own * (1 - half)
    return moved
