"""A guide that the user wrote: read once, checked against the model, run in every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_em.errors import ModelError, PlanError, PplEmError, message
from ppl_em.ir import Parameter, Program
from ppl_em.svi.batch import Batch
from ppl_em.svi.score import Scored, run_scored
from ppl_em.trace.footprint import isolated
from ppl_em.trace.run import run_program
from ppl_em.trace.tracing import Source

#: Draws by which the guide's support is held against the model's.
SUPPORT_DRAWS = 64


@dataclass(frozen=True)
class GuideTrace:
    """What one run of a guide shows.

    Args:
        names: latents that it draws, in order.
        coupled: for each, the guide's latents on which its distribution depends.
        parameters: what it trains.
    """

    names: tuple[str, ...]
    coupled: Mapping[str, tuple[str, ...]]
    parameters: Mapping[str, Parameter]


def trace_guide(guide: Any, source: Source, values: Mapping[str, Tensor], freeze: Sequence[str] = ()) -> GuideTrace:
    """Run a guide once, following which of its latents depend on which.

    Args:
        guide: a Pyro guide with the model's arguments.
        source: the model and its data.
        values: constrained start values of parameters.
        freeze: names of parameters held fixed.

    Raises:
        ModelError: the guide cannot be run.
    """
    if not callable(guide):
        raise ModelError(message("the guide is not callable", value=type(guide).__name__, hint="a Pyro guide"))
    with isolated(source.seed):
        run = run_program(
            guide, source.args, source.kwargs, parameters=values, follow=True, keep_subsamples=source.batch
        )
    names = [n for n, r in run.records.items() if not r.infer.get("is_auxiliary") and _drawn(r)]
    coupled: dict[str, tuple[str, ...]] = {}
    for name, record in run.records.items():
        direct = {m[7:] for m in record.marks if m.startswith("latent:") and m[7:] != name}
        closure = direct.union(*(coupled.get(d, ()) for d in direct))
        coupled[name] = tuple(n for n in run.records if n in closure)
    parameters = {}
    for name, seen in run.parameters.items():
        module = seen.value if seen.module else None
        frozen = name in freeze or (module is not None and not module.requires_grad)
        parameters[name] = Parameter(
            name, seen.value.detach().clone(), seen.constraint, "module" if seen.module else "param", frozen, module
        )
    return GuideTrace(tuple(names), coupled, parameters)


def _drawn(record: Any) -> bool:
    return record.role == "latent" or isinstance(record.fn, dist.Delta)


class UserRun:
    """Runs a user's guide; its finite discrete latents are enumerated, all others drawn.

    Args:
        guide: the guide.
        trace: what one run of it showed.
        program: the model's trace.
    """

    mean_field = False

    def __init__(self, guide: Any, trace: GuideTrace, program: Program) -> None:
        self.callable, self.trace, self.program = guide, trace, program
        self.parameters = dict(trace.parameters)
        layout = program.runner.layout
        self._enumerated = {
            n: layout.enumerated(n, program.latents[n].support)
            for n in trace.names
            if n in program.latents and program.latents[n].kind == "discrete" and program.latents[n].support is not None
        }

    def draw(self, batch: Batch, parameters: Mapping[str, Tensor]) -> list[Scored]:
        """One draw of the latents in the guide, reparameterised where their distributions allow it."""

        def draw(name: str, fn: Any) -> Tensor:
            if name in self._enumerated:
                return self._enumerated[name]
            return fn.rsample() if fn.has_rsample else fn.sample()

        try:
            sites = run_scored(
                self.callable,
                batch.args,
                batch.kwargs,
                draw,
                parameters,
                batch.indices,
                batch.keep_subsamples,
                guide=True,
            )
        except PplEmError:
            raise
        except (RuntimeError, ValueError, IndexError) as error:
            if not self._enumerated:
                raise
            raise PlanError(
                message(
                    "the guide cannot be run with all values of its discrete latents at once",
                    site=next(iter(self._enumerated)),
                    why=f"{type(error).__name__}: {error}",
                    hint="operations that broadcast over extra dimensions on the left",
                )
            ) from error
        return [s for s in sites if not s.observed]


def check_guide(run: UserRun, model: Any, batch: Batch, parameters: Mapping[str, Tensor]) -> None:
    """Hold a guide against the model that it is for: names, shapes and supports of its latents.

    Args:
        run: the guide.
        model: the program.
        batch: data.
        parameters: constrained start values of both.

    Raises:
        ModelError: a site is missing, invented, of the wrong shape, or has values outside the model's support.
    """
    program = run.program
    _check_names(run.trace.names, program)
    drawn: dict[str, Scored] = {}

    def from_guide(name: str, fn: Any) -> Tensor:
        return fn.rsample() if fn.has_rsample else fn.sample()

    with torch.no_grad():
        guide_sites = run_scored(
            run.callable,
            batch.args,
            batch.kwargs,
            from_guide,
            parameters,
            batch.indices,
            batch.keep_subsamples,
            guide=True,
        )
        drawn = {s.name: s for s in guide_sites}

        def from_prior(name: str, fn: Any) -> Tensor:
            if name in drawn:
                _check_shape(name, drawn[name].fn, fn)
                _check_support(name, drawn[name], fn)
                return drawn[name].value
            return parameters[name] if name in parameters else fn.sample()

        run_scored(model, batch.args, batch.kwargs, from_prior, parameters, batch.indices, batch.keep_subsamples)


def _check_names(names: Sequence[str], program: Program) -> None:
    known = [n for n, z in program.latents.items()]
    for name in names:
        if name in program.sites and name not in known:
            raise ModelError(
                message("the guide draws a site that the model observes", site=name, hint="leaving it to the model")
            )
        if name not in known:
            raise ModelError(
                message("the guide draws a site that the model does not have", site=name, hint=f"one of {known}")
            )
    for name, latent in program.latents.items():
        if name in names or (latent.kind == "discrete" and name not in program.refused) or name in program.parameters:
            continue
        raise ModelError(
            message(
                "the guide leaves out a latent of the model",
                site=name,
                why=program.refused.get(
                    name, "it is continuous and local, so that it can be neither summed nor estimated as a point"
                ),
                hint=f'pyro.sample("{name}", ...) in the guide, or no guide at all',
            )
        )


def _check_shape(name: str, guide: Any, model: Any) -> None:
    mine, theirs = tuple(guide.shape()), tuple(model.shape())
    if mine != theirs:
        plates = (
            "is the sample statement in the same plates?" if len(mine) != len(theirs) or not guide.batch_shape else ""
        )
        raise ModelError(
            message(
                f"the guide's draw has shape {mine}, the model's {theirs}",
                site=name,
                why=plates or None,
                hint="the model's plates and event shape",
            )
        )
    if guide.event_dim != model.event_dim:
        raise ModelError(
            message(
                f"the guide's distribution has {guide.event_dim} event dimensions, the model's {model.event_dim}",
                site=name,
                hint=f".to_event({model.event_dim})" if model.event_dim else "leaving out .to_event",
            )
        )


def _check_support(name: str, site: Scored, model: Any) -> None:
    fn = site.fn
    try:
        support = model.support
    except NotImplementedError:
        return
    values = [site.value]
    if not isinstance(fn, dist.Delta):
        if getattr(fn, "has_enumerate_support", False):
            values.append(fn.enumerate_support())
        else:
            values.append(fn.sample((SUPPORT_DRAWS,)))
    try:
        outside = next((v for v in values if not bool(support.check(v).all())), None)
    except (RuntimeError, NotImplementedError):
        return
    whole = _base(getattr(fn, "support", None)) in (constraints.real, constraints.real_vector)
    narrow = _base(support) not in (constraints.real, constraints.real_vector)
    if outside is not None or (whole and narrow and not isinstance(fn, dist.Delta)):
        raise ModelError(
            message(
                "the guide draws values outside the support of the model's distribution",
                site=name,
                why=f"{_spelled(model)} needs {_base(support)}, {_spelled(fn)} draws {_base(getattr(fn, 'support', None))}",
                hint="a distribution over the same support (LogNormal for positive, Beta for the unit interval)",
            )
        )


def _base(support: Any) -> Any:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def _spelled(fn: Any) -> str:
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    return type(fn).__name__
