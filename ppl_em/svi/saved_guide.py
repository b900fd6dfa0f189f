"""The guide of a fit on disk: what an automatic guide is rebuilt from, and the values of either kind of guide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ppl_em.errors import PplEmError, message
from ppl_em.ir import Program
from ppl_em.svi.automatic import AutomaticGuide
from ppl_em.svi.discrete import Table
from ppl_em.svi.families import PushforwardNormal
from ppl_em.svi.guides import AutomaticRun, GuideRun
from ppl_em.svi.user_guide import UserRun, trace_guide
from ppl_em.trace.tracing import Source


@dataclass(frozen=True)
class SavedGuide:
    """A guide that is rebuilt when data are given.

    Args:
        content: plain JSON values: the kind of guide and what its parts look like.
        tensors: constants of an automatic guide that are no parameters: standardisations, centres of families.
        given: the user's guide, or the encoder that stood in for the automatic one.
    """

    content: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    given: Any = None

    @property
    def guided(self) -> tuple[str, ...]:
        """Latents that a user's guide draws."""
        return tuple(self.content.get("names", ()))

    def restore(self, program: Program, source: Source, values: Mapping[str, Tensor]) -> GuideRun:
        """The guide on given data.

        Args:
            program: traced on these data.
            source: program and data.
            values: fitted values of model and guide.

        Raises:
            PplEmError: the user's guide is not at hand, or the data are unlike those of the fit.
        """
        if self.content["kind"] == "user":
            if self.given is None:
                raise absent("the fit used a guide of yours", "ppl_em.load(path, model, guide=guide)")
            run: GuideRun = UserRun(self.given, trace_guide(self.given, source, values), program)
        else:
            run = AutomaticRun(self._automatic(program, source), held=bool(self.content["held"]))
        for name, parameter in run.parameters.items():
            if name not in values or parameter.init.shape != values[name].shape:
                why = "the data are unlike those of the fit" if name in values else "it was not saved"
                raise PplEmError(message("the guide cannot be rebuilt", site=name, why=why))
            if parameter.module_tensor is not None:
                with torch.no_grad():
                    parameter.module_tensor.copy_(values[name])
        return run

    def _automatic(self, program: Program, source: Source) -> AutomaticGuide:
        encoder = None
        if self.content["encoder"]:
            encoder = self.given
            if not isinstance(encoder, nn.Module):
                raise absent("the fit used an encoder of yours", "ppl_em.load(path, model, guide=encoder)")
        guide = AutomaticGuide(
            program,
            source,
            covariance=self.content["covariance"],
            hidden=self.content["hidden"],
            encoder=encoder,
            columns=self.content["columns"],
        )
        found = {m.name: m.family for g in guide.groups for m in g.members}
        for name, kind in self.content["families"].items():
            family = found.get(name)
            if type(family).__name__ != kind or not isinstance(family, (PushforwardNormal, Table)):
                why = f"the state of its variational family, {kind}, is not saved"
                raise PplEmError(message("the guide cannot be rebuilt", site=name, why=why))
            if isinstance(family, PushforwardNormal):
                family.centre_at(self.tensors[f"family/{name}/loc"], self.tensors[f"family/{name}/scale"])
        buffers = dict(guide.networks.named_buffers())
        for name, value in self.tensors.items():
            own = buffers.get(name.removeprefix("buffer/"))
            if name.startswith("buffer/") and (own is None or own.shape != value.shape):
                why = "the data are unlike those of the fit"
                raise PplEmError(message("the guide cannot be rebuilt", site=name.removeprefix("buffer/"), why=why))
            if own is not None and name.startswith("buffer/"):
                own.copy_(value)
        return guide


def describe(run: GuideRun) -> SavedGuide:
    """What a guide is rebuilt from; its parameters are saved apart."""
    if isinstance(run, UserRun):
        return SavedGuide({"kind": "user", "names": list(run.trace.names)})
    assert isinstance(run, AutomaticRun)
    guide: AutomaticGuide = run.callable
    members = [m for g in guide.groups for m in g.members]
    tensors = {f"buffer/{n}": b.detach().clone() for n, b in guide.networks.named_buffers()}
    for member in members:
        if isinstance(member.family, PushforwardNormal):
            tensors[f"family/{member.name}/loc"] = member.family.loc.detach().clone()
            tensors[f"family/{member.name}/scale"] = member.family.scale.detach().clone()
    content = {
        "kind": "automatic",
        "held": run.held,
        "covariance": guide.covariance,
        "hidden": list(guide.hidden),
        "encoder": guide.given is not None,
        "columns": {c.name: [c.masked, c.categories] for c in guide.columns},
        "families": {m.name: type(m.family).__name__ for m in members},
    }
    return SavedGuide(content, tensors)


def tracing_to_json(tracing: Mapping[str, Any]) -> dict[str, Any]:
    """Options of tracing as plain JSON values."""
    return {
        "variational": sorted(tracing.get("variational", ())),
        "coupled": {n: list(v) for n, v in (tracing.get("coupled") or {}).items()},
        "declined": dict(tracing.get("declined") or {}),
        "guided": list(tracing.get("guided", ())),
    }


def tracing_from_json(content: Mapping[str, Any]) -> dict[str, Any]:
    """Options of tracing as :func:`tracing_to_json` wrote them."""
    return {
        "variational": frozenset(content["variational"]),
        "coupled": {n: tuple(v) for n, v in content["coupled"].items()},
        "declined": dict(content["declined"]),
        "guided": tuple(content["guided"]),
        "strict": False,
    }


def absent(why: str, hint: str) -> PplEmError:
    """The error of a question that needs something that files do not hold."""
    return PplEmError(message("the approximate posterior is not at hand", why=why, hint=hint))


class DeferredGuide:
    """A guide that is rebuilt for the data that it is called with.

    Args:
        rebuild: gives the guide for a call's arguments.
    """

    def __init__(self, rebuild: Any) -> None:
        self._rebuild = rebuild

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Called as the guide."""
        with torch.enable_grad():
            guide = self._rebuild(args, kwargs)
        return guide(*args, **kwargs)
