"""Random small chains and their enumeration, the oracle of the chain tests."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

TRANS = ["shared", "steps", "chains", "outer", "all"]
"""How a transition is shared: by all; per step; per chain; per outer batch dimension and step; not at all."""


def enumerate_paths(log_init: Tensor, log_trans: Tensor, log_obs: Tensor) -> tuple[Tensor, Tensor]:
    """All paths (P, T) and the log-weight of each (P) for one chain, log_trans (T-1, K, K)."""
    steps, states = log_obs.shape
    paths = torch.tensor(list(itertools.product(range(states), repeat=steps)))
    score = log_init[paths[:, 0]] + sum(log_obs[t, paths[:, t]] for t in range(steps))
    for t in range(1, steps):
        score = score + log_trans[t - 1, paths[:, t - 1], paths[:, t]]
    return paths, score


def brute_force(log_init: Tensor, log_trans: Tensor, log_obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log Z, marginals (T, K) and pair marginals (T-1, K, K) of one chain by enumeration."""
    paths, score = enumerate_paths(log_init, log_trans, log_obs)
    log_z = score.logsumexp(0)
    weight = (score - log_z).exp() if log_z > -torch.inf else torch.zeros_like(score)
    one_hot = torch.nn.functional.one_hot(paths, log_obs.shape[-1]).to(score.dtype)
    gamma = torch.einsum("p,ptk->tk", weight, one_hot)
    return log_z, gamma, torch.einsum("p,pti,ptj->tij", weight, one_hot[:, :-1], one_hot[:, 1:])


def random_chain(batch: tuple[int, ...], steps: int, states: int, trans: str) -> tuple[Tensor, Tensor, Tensor]:
    """Random factors; ``trans`` names the sharing of the transition."""
    shape = {
        "shared": (states, states),
        "steps": (steps - 1, states, states),
        "chains": (*batch, 1, states, states),
        "outer": (*batch[:-1], 1, steps - 1, states, states) if batch else (steps - 1, states, states),
        "all": (*batch, steps - 1, states, states),
    }[trans]
    return (
        torch.randn(*batch, states),
        2 * torch.randn(shape),
        3 * torch.randn(*batch, steps, states),
    )


def one_by_one(factors: tuple[Tensor, Tensor, Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The chains of a batch, each with its transition of every step."""
    init, trans, obs = factors
    batch, (steps, states) = obs.shape[:-2], obs.shape[-2:]
    trans = trans.expand(*batch, steps - 1, states, states).reshape(batch.numel(), steps - 1, states, states)
    init = init.expand(*batch, states).reshape(-1, states)
    return list(zip(init, trans, obs.reshape(-1, steps, states), strict=True))
