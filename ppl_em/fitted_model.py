"""The program with its fitted values, as ordinary Pyro callables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor

from ppl_em.errors import NotAvailableYet, message

if TYPE_CHECKING:
    from ppl_em.result import FitResult


class _Substitute(Messenger):
    """Parameter statements return the fitted values."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_param(self, msg: Any) -> None:
        init = msg["args"][1] if len(msg["args"]) > 1 else None
        if msg["name"] in self.values and not isinstance(init, torch.nn.Parameter):
            msg["value"], msg["done"] = self.values[msg["name"]], True


class FittedModel:
    """A program whose parameters have their fitted values; the global parameter store is not touched.

    Args:
        model: the program.
        params: constrained values by name.
        settings: keyword arguments of the fit that were not data; those of a call come before them.
    """

    def __init__(self, model: Any, params: Mapping[str, Tensor], settings: Mapping[str, Any] | None = None) -> None:
        self.model, self.params, self.settings = model, params, dict(settings or {})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program with the fitted values."""
        with _Substitute(self.params):
            return self.model(*args, **{**self.settings, **kwargs})


class PosteriorGuide:
    """A guide whose latents are exact joint draws from the posterior; point estimates are deltas.

    Each call is one draw, whole sites at a time: ``Predictive(result.model, guide=result.guide, num_samples=n)``.

    Args:
        result: the fitted program.
    """

    def __init__(self, result: FitResult) -> None:
        self.result = result
        self._kept: tuple[Any, Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw every latent once, given the data."""
        if any(isinstance(h, IndepMessenger) and h.size > 1 and h.dim is not None for h in _PYRO_STACK):
            why = "one call is one draw"
            hint = "Predictive(..., parallel=False)"
            raise NotAvailableYet(message("the posterior's guide is not vectorised", why=why, hint=hint))
        key = (args, tuple(kwargs.items()))
        if self._kept is None or not _same(self._kept[0], key):
            self._kept = (key, self.result.posterior(*args, **kwargs))
        posterior = self._kept[1]
        values = posterior.sample(1, int(torch.randint(2**31 - 1, ())))
        drawn = dict(self.result.point_estimates)
        drawn.update(posterior.by_step({n: v[0] for n, v in values.items()}))
        # Without plates: Predictive would put the guide's plates in front of the shape of every global site.
        return {n: pyro.sample(n, dist.Delta(v, event_dim=v.dim())) for n, v in drawn.items()}


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a is b
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return a is b or (isinstance(a, (str, int, float, bool)) and a == b)


def write_params(result: FitResult) -> None:
    """Copy the fitted values into Pyro's global parameter store, under their constraints."""
    store = pyro.get_param_store()
    for name, value in result.params.items():
        parameter = result.plan.program.parameters[name]
        if parameter.module_tensor is not None:
            pyro.param(name, parameter.module_tensor)
            continue
        if name in store:
            del store[name]
        store.setdefault(name, value.clone(), parameter.constraint)
