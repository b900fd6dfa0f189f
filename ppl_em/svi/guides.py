"""How a guide is run inside a gradient step, whether built from the program or written by the user."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import constraints

from ppl_em.errors import ModelError, message
from ppl_em.ir import Parameter
from ppl_em.svi.automatic import LABEL, AutomaticGuide
from ppl_em.svi.batch import Batch
from ppl_em.svi.score import Scored
from ppl_em.trace.classify import is_discrete


class GuideRun(Protocol):
    """Draws all sampled latents for a batch.

    Attributes:
        mean_field: draws of different sites are independent unless their plates are nested.
        parameters: what the guide trains, by name.
        callable: the guide as an ordinary Pyro guide.
    """

    mean_field: bool
    parameters: dict[str, Parameter]
    callable: Any

    def draw(self, batch: Batch, parameters: Mapping[str, Tensor]) -> list[Scored]:
        """One differentiable draw."""
        ...


class AutomaticRun:
    """Runs an automatic guide without Pyro's handlers.

    Args:
        guide: the guide.
        held: see :meth:`AutomaticGuide.draw`; the importance-weighted bound needs the whole gradient.
    """

    mean_field = True

    def __init__(self, guide: AutomaticGuide, held: bool = True) -> None:
        self.callable, self.held = guide, held
        named = [(f"{LABEL}$$${n}", t) for n, t in guide.networks.named_parameters()]
        named += [(f"{LABEL}.free.{n}", t) for n, t in guide.free.items()]
        self.parameters = {
            n: Parameter(n, t.detach().clone(), constraints.real, "module", not t.requires_grad, t) for n, t in named
        }

    def draw(self, batch: Batch, parameters: Mapping[str, Tensor]) -> list[Scored]:
        """One reparameterised draw of all latents."""
        guide: AutomaticGuide = self.callable
        observed = batch.observed
        if observed is None:
            observed = guide.read(batch.args, batch.kwargs, parameters, batch.keep_subsamples)
        sites: list[Scored] = []

        def sample(name: str, fn: Any, twin: Any, beside: str | None) -> Tensor:
            if isinstance(fn, dist.Delta):
                value = fn.v
            elif fn.has_rsample:
                value = fn.rsample()
            elif is_discrete(fn):  # its gradient comes by the score
                value = fn.sample()
            else:
                raise ModelError(
                    message("the variational family cannot be reparameterised", site=name, value=type(fn).__name__)
                )
            infer = {"is_auxiliary": True, "with": beside} if beside else {}
            sites.append(Scored(name, fn, value, False, infer=infer, twin=twin))
            return value

        indices = dict(batch.indices)
        if batch.rows is not None and batch.plate is not None:
            indices[batch.plate] = batch.rows
        guide.draw(observed, sample, indices, self.held)
        return sites
