"""The oracle of the style tests: plain Pyro, every joint assignment run one by one. It knows nothing of tracing.

A run is steered by a script of choices, one for each element of each unobserved discrete site; an odometer over the
scripts visits every joint assignment, also where which sites there are depends on earlier choices.

Conventions (the package's, written down a second time): a mask does not apply to the density of a latent; log-densities
are taken at the sample statement; scales are left out (a test multiplies by hand).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

MAX_RUNS = 5000


class Scripted(Messenger):
    """Latents take the script's choices; the log joint is added up at the sample statements."""

    def __init__(self, script: list[int], parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.script, self.parameters = script, parameters
        self.options: list[int] = []
        self.values: dict[str, Tensor] = {}
        self.log_joint = torch.zeros((), dtype=torch.float64)

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] in self.parameters:
            value = self.parameters[msg["name"]]
            value._pyro_unconstrained_param = value  # pyro.param asks for it
            msg["value"], msg["done"] = value, True

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if type(fn).__name__ == "_Subsample" or msg["infer"].get("_deterministic"):
            return
        latent = not msg["is_observed"] and not isinstance(fn, dist.Delta)
        if latent:
            msg["value"], msg["done"] = self._choose(fn), True
            self.values[msg["name"]] = msg["value"].clone()
            while isinstance(fn, dist.MaskedDistribution):
                fn = fn.base_dist  # a mask does not apply to the density of a latent
        value = fn.v if isinstance(fn, dist.Delta) and not msg["is_observed"] else msg["value"]
        log_prob = fn.log_prob(value)
        if not latent and msg["mask"] is not None:
            mask = torch.as_tensor(msg["mask"]).clone()
            log_prob = torch.where(mask, log_prob, torch.zeros_like(log_prob))
        self.log_joint = self.log_joint + log_prob.sum()

    def _choose(self, fn: Any) -> Tensor:
        base = fn
        while isinstance(base, (torch.distributions.Independent, dist.MaskedDistribution)):
            base = base.base_dist
        supports = _supports(base)
        chosen = []
        for support in supports:
            turn = len(self.options)
            if turn == len(self.script):
                self.script.append(0)
            self.options.append(len(support))
            chosen.append(support[self.script[turn]])
        return torch.stack(chosen).reshape(tuple(base.batch_shape) + tuple(base.event_shape))


def _supports(base: Any) -> list[Tensor]:
    """The support of each element of a batch, elements in row-major order."""
    count = max(1, torch.Size(base.batch_shape).numel())
    total = getattr(base, "total_count", None)
    if isinstance(total, Tensor) and not base.event_shape:
        totals = total.expand(base.batch_shape).reshape(-1)
        return [torch.arange(1 + int(n), dtype=torch.get_default_dtype()) for n in totals]
    values = base.enumerate_support(expand=False)
    return [values.reshape((values.shape[0],) + tuple(base.event_shape))] * count


@dataclass(frozen=True)
class Truth:
    """All joint assignments with their log joint densities.

    Args:
        scores: (runs,) log joint densities.
        values: for each run, the values of its latents.
    """

    scores: Tensor
    values: list[dict[str, Tensor]]

    @property
    def log_z(self) -> Tensor:
        return torch.logsumexp(self.scores, 0)

    def marginal(self, name: str, support: Tensor, event_dim: int) -> Tensor:
        """Probability of each value in ``support``, (*batch, K), given that the site exists."""
        weights = (self.scores - self.log_z).exp().detach()
        table: Any = 0.0
        total = 0.0
        for weight, values in zip(weights, self.values, strict=True):
            if name not in values:
                continue
            value = values[name]
            same = value.unsqueeze(value.dim() - event_dim) == support
            table = table + weight * same.reshape(*same.shape[: same.dim() - event_dim], -1).all(-1).double()
            total = total + float(weight)
        return table / total


def enumerate_program(
    model: Callable[..., Any], args: tuple[Any, ...] = (), parameters: Mapping[str, Tensor] | None = None
) -> Truth:
    """Run the program once for every joint assignment of its discrete latents."""
    script: list[int] = []
    scores, values = [], []
    while True:
        run = Scripted(script, parameters or {})
        with pyro.get_param_store().scope(), pyro.validation_enabled(False), run:
            torch.manual_seed(0)
            model(*args)
        scores.append(run.log_joint)
        values.append(run.values)
        script = script[: len(run.options)]
        while script and script[-1] == run.options[len(script) - 1] - 1:
            script.pop()
        if not script:
            return Truth(torch.stack(scores), values)
        script[-1] += 1
        assert len(scores) < MAX_RUNS, "the program is too large for the oracle"
