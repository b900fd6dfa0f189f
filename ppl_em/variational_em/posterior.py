"""The variational posterior q(z) Π q(θ): summed latents exactly given the factors of the global ones, and these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ppl_em.plan.plan import Plan
from ppl_em.posterior import Posterior
from ppl_em.trace.footprint import isolated
from ppl_em.variational_em.factors import distribution, entropy
from ppl_em.variational_em.network import Network
from ppl_em.variational_em.nodes import Node


class VariationalPosterior(Posterior):
    """The optimal q(z) q(θ) of a program at given factors.

    Args:
        plan: how the summed latents are contracted.
        values: values of parameters, and the factors' hyperparameters (``"weights.concentration"``).
    """

    def __init__(self, plan: Plan, values: Mapping[str, Tensor]) -> None:
        self.network = Network(plan)
        factors = self.network.read(values)
        assert factors is not None
        self.factors = factors
        sites = [s for b in plan.blocks for s in b.block.sites]
        with torch.no_grad():
            logs = self.network.log_factors(sites, factors, values)
        means = self.network.means(self.network.beliefs(factors))
        super().__init__(plan, {**values, **means}, logs)

    def marginal(self, name: str) -> Any:
        """Marginal of a summed latent, or of a global one (a location that shares its factor: Student's t).

        Args:
            name: site name.
        """
        if name not in self.network.nodes:
            return super().marginal(name)
        node = self.network.nodes[name]
        found = distribution(node.family, self.factors[name], self._partner(node))
        extra = len(found.batch_shape) + len(found.event_shape) - len(node.shape)
        assert extra == 0
        return found

    @property
    def marginals(self) -> dict[str, Any]:
        """Marginals of all latents by name, global ones first."""
        return {n: self.marginal(n) for n in self.network.nodes} | super().marginals

    def sample(self, num_samples: int = 1, seed: int | None = None) -> dict[str, Tensor]:
        """Independent draws of q: joint draws of the summed latents, and of the global ones.

        Args:
            num_samples: number of draws.
            seed: of these draws; None draws afresh at each call.

        Returns:
            Values by site, (num_samples, *plates, *event_shape).
        """
        if seed is None:
            seed = int(torch.Generator().seed() % 2**31)
        return {**self.sample_globals(num_samples, seed), **super().sample(num_samples, seed)}

    def sample_globals(self, num_samples: int, seed: int) -> dict[str, Tensor]:
        """Draws of the global latents alone, in the program's dtypes."""
        with isolated(seed):
            drawn = draw(self.network, self.factors, num_samples)
        parameters = self.plan.program.parameters
        return {n: v.to(parameters[n].init.dtype) for n, v in drawn.items()}

    def by_step(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One draw as the sample statements return it."""
        apart = {n: v for n, v in values.items() if n in self.network.nodes}
        return {**apart, **super().by_step({n: v for n, v in values.items() if n not in apart})}

    def entropy(self) -> Tensor:
        """Entropy of q in nats: that of the summed latents, and the differential entropy of the global ones."""
        total = super().entropy()
        for name, node in self.network.nodes.items():
            total = total + self._entropy(name, node)
        return total

    def _entropy(self, name: str, node: Node) -> Tensor:
        beliefs = self.network.beliefs(self.factors)
        shared = None
        if node.joint is not None:
            log = beliefs[node.joint.partner].log
            assert log is not None
            shared = log.reshape(-1)[node.joint.owner].reshape(self.factors[name]["relative_precision"].shape)
        own = entropy(node.family, self.factors[name], shared).sum()
        if node.family == "InverseGamma":  # of θ = 1/τ: the change of variables counts
            log = beliefs[name].log
            assert log is not None
            own = own - 2 * log.sum()
        return own

    def _partner(self, node: Node) -> dict[str, Tensor] | None:
        """Hyperparameters of the precision in a joint factor, by element (vector) of the location."""
        if node.joint is None:
            return None
        batch = node.shape if node.family == "Normal" else node.shape[:-1]
        found = {}
        for name, value in self.factors[node.joint.partner].items():
            event = 2 if name == "inverse_scale" else 0
            entries = value.reshape(-1, *value.shape[value.dim() - event :])[node.joint.owner]
            found[name] = entries.reshape(*batch, *entries.shape[1:])
        return found


def draw(network: Network, factors: Mapping[str, Any], num_samples: int) -> dict[str, Tensor]:
    """Draws of all global latents from their factors, (num_samples, *shape) float64, by torch's random state."""
    found: dict[str, Tensor] = {}
    for name, node in sorted(network.nodes.items(), key=lambda item: item[1].joint is not None):
        h = factors[name]
        if node.joint is None:
            found[name] = _drawn(node, h, num_samples).reshape(num_samples, *node.shape)
            continue
        precision = found[node.joint.partner]
        noise = torch.randn(num_samples, *node.shape, dtype=torch.float64)
        beta = h["relative_precision"]
        if node.family == "Normal":
            tau = precision.reshape(num_samples, -1)[:, node.joint.owner].reshape(noise.shape)
            tau = tau.reciprocal() if network.nodes[node.joint.partner].family == "InverseGamma" else tau
            found[name] = h["loc"] + noise * (beta * tau).rsqrt()
            continue
        size = node.shape[-1]
        matrices = precision.reshape(num_samples, -1, size, size)[:, node.joint.owner]
        root = torch.linalg.cholesky(matrices.reshape(num_samples, *node.shape, size) * beta[..., None, None])
        found[name] = h["loc"] + torch.linalg.solve_triangular(root.mT, noise[..., None], upper=True)[..., 0]
    return found


def _drawn(node: Node, h: Mapping[str, Tensor], num_samples: int) -> Tensor:
    if node.family == "Wishart":
        return _wishart(h, num_samples)
    return distribution(node.family, h).sample((num_samples,))


def _wishart(h: Mapping[str, Tensor], num_samples: int) -> Tensor:
    """Draws by Bartlett's decomposition."""
    df, size = h["df"], h["inverse_scale"].shape[-1]
    scale = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h["inverse_scale"])))
    steps = torch.arange(size, dtype=torch.float64)
    chi = torch.distributions.Chi2(df[..., None] - steps).sample((num_samples,)).sqrt()
    lower = torch.randn(num_samples, *df.shape, size, size, dtype=torch.float64).tril(-1) + torch.diag_embed(chi)
    root = scale @ lower
    return root @ root.mT
