"""The density of q(θ) at given values: the proposal of importance sampling."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ppl_em.variational_em.factors import Hyper, distribution
from ppl_em.variational_em.network import Network
from ppl_em.variational_em.nodes import Node


def log_density(network: Network, factors: Mapping[str, Hyper], values: Mapping[str, Tensor]) -> Tensor:
    """Σ log q(θ) over all global latents, (n,), nats.

    Args:
        network: the latents.
        factors: their hyperparameters.
        values: by name, (n, *shape).
    """
    count = len(next(iter(values.values())))
    total = torch.zeros(count, dtype=torch.float64)
    for name, node in network.nodes.items():
        value = values[name].double()
        if node.joint is not None:
            part = _given_precision(node, factors[name], value, _precision(network, node, values))
        else:
            part = distribution(node.family, factors[name]).log_prob(value)
        total = total + part.reshape(count, -1).sum(-1)
    return total


def _precision(network: Network, node: Node, values: Mapping[str, Tensor]) -> Tensor:
    """The precision that belongs to each element (vector) of a location, (n, *batch) or (n, *batch, D, D)."""
    assert node.joint is not None
    value = values[node.joint.partner].double()
    if network.nodes[node.joint.partner].family == "InverseGamma":
        value = value.reciprocal()
    if node.family == "Normal":
        return value.reshape(len(value), -1)[:, node.joint.owner].reshape(len(value), *node.shape)
    size = node.shape[-1]
    matrices = value.reshape(len(value), -1, size, size)[:, node.joint.owner]
    return matrices.reshape(len(value), *node.shape, size)


def _given_precision(node: Node, h: Hyper, value: Tensor, precision: Tensor) -> Tensor:
    shift, beta = value - h["loc"], h["relative_precision"]
    if node.family == "Normal":
        tau = beta * precision
        return 0.5 * (tau.log() - tau * shift.square() - math.log(2 * math.pi))
    size = node.shape[-1]
    square = (shift[..., None, :] @ precision @ shift[..., None])[..., 0, 0]
    log_det = torch.linalg.slogdet(precision).logabsdet + size * beta.log()
    return 0.5 * (log_det - beta * square - size * math.log(2 * math.pi))
