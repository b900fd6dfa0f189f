"""One run of a model or guide inside a gradient step: latents given or drawn, sites kept with scale and mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_em.trace.footprint import full_plates
from ppl_em.trace.missing import Seen, knows_gaps, seen_part

_NO_INDICES: dict[str, Tensor] = {}


@dataclass(slots=True)
class Scored:
    """What a run saw at one sample statement.

    Args:
        name: site name.
        fn: its distribution, plates applied.
        value: given, drawn or observed value.
        observed: whether it is data (or a factor).
        scale: product of the scales around it.
        mask: where False it does not count; None for everywhere.
        frames: plates around it.
        infer: the statement's ``infer`` entries.
        twin: of a guide's draw, its distribution with the parameters held; log q is scored by it.
    """

    name: str
    fn: Any
    value: Tensor
    observed: bool
    scale: Any = 1.0
    mask: Any = None
    frames: tuple[Any, ...] = ()
    infer: dict[str, Any] = field(default_factory=dict)
    twin: Any = None

    def log_prob(self) -> Tensor:
        """Log-density by batch element; mask and scale not applied."""
        value = self.value
        hidden = self.mask is not None or _masked(self.fn)
        if self.observed and value.is_floating_point() and hidden and not knows_gaps(self.fn):
            value = torch.nan_to_num(value)  # what a mask hides may be NaN, and its gradient would be NaN too
        return (self.fn if self.twin is None else self.twin).log_prob(value)

    def inside(self, plate: str | None) -> bool:
        """Whether the site lives in a plate."""
        return plate is not None and any(f.name == plate for f in self.frames)


def _masked(fn: Any) -> bool:
    while isinstance(fn, dist.Independent):
        fn = fn.base_dist
    return isinstance(fn, dist.MaskedDistribution)


class Scorer(Messenger):
    """The outermost handler of a run.

    Args:
        draw: value of a latent, by name and distribution.
        parameters: constrained values by name; a module's own tensors stay what they are.
        guide: the program is a guide.
    """

    def __init__(
        self, draw: Callable[[str, Any], Tensor], parameters: Mapping[str, Tensor], guide: bool = False
    ) -> None:
        super().__init__()
        self.draw, self.parameters, self.guide = draw, parameters, guide
        self.sites: list[Scored] = []

    def _pyro_param(self, msg: Any) -> None:
        init = msg["args"][1] if len(msg["args"]) > 1 else None
        if isinstance(init, torch.nn.Parameter):
            msg["value"], msg["done"] = init, True
            return
        value = self.parameters.get(msg["name"])
        if value is not None:
            if not hasattr(value, "_pyro_unconstrained_param"):
                value._pyro_unconstrained_param = value  # type: ignore[attr-defined]
            msg["value"], msg["done"] = value, True

    def _pyro_sample(self, msg: Any) -> None:
        fn, infer = msg["fn"], msg["infer"]
        if type(fn).__name__ == "_Subsample" or infer.get("_do_not_trace") or infer.get("_deterministic"):
            return
        observed = msg["is_observed"]
        if not observed:
            delta = isinstance(fn, dist.Delta)
            msg["value"] = fn.v if delta else self.draw(msg["name"], fn)
            msg["done"] = True
            observed = delta and not self.guide  # in a model a Delta is a function of what came before
        mask = msg["mask"]
        seen = seen_part(msg["name"], fn, msg["value"], mask) if msg["is_observed"] else Seen(fn, msg["value"])
        self.sites.append(
            Scored(
                msg["name"],
                seen.fn,
                seen.value,
                observed,
                msg["scale"],
                None if mask is True else mask,
                msg["cond_indep_stack"],
                infer,
            )
        )


def run_scored(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    draw: Callable[[str, Any], Tensor],
    parameters: Mapping[str, Tensor],
    indices: Mapping[str, Tensor] = _NO_INDICES,
    keep_subsamples: bool = False,
    guide: bool = False,
) -> list[Scored]:
    """Run a program with its latents given.

    Args:
        model, args, kwargs: the program and its arguments.
        draw: value of a latent, by name and distribution.
        parameters: constrained values by name.
        indices: elements of subsampled plates, by plate.
        keep_subsamples: the arguments are a batch; subsample sizes that plates declare are kept.
        guide: the program is a guide.

    Returns:
        All sites in program order.
    """
    scorer = Scorer(draw, parameters, guide)
    with full_plates(indices, keep_subsamples), scorer:
        model(*args, **kwargs)
    return scorer.sites
