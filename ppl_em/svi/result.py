"""The result of a fit whose posterior is approximate: the same questions, answered by bounds and by sampling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppl_em.arguments import as_tensors
from ppl_em.errors import PplEmError, message
from ppl_em.ir import Parameter
from ppl_em.plan.plan import Plan
from ppl_em.result import FitResult
from ppl_em.svi.batch import Batch
from ppl_em.svi.batches import batch_size, call_arguments
from ppl_em.svi.fitted_guide import FittedGuide
from ppl_em.svi.guides import GuideRun
from ppl_em.svi.posterior import AmortisedPosterior
from ppl_em.svi.query import Query
from ppl_em.svi.saved_guide import DeferredGuide, SavedGuide, absent
from ppl_em.svi.user_guide import UserRun
from ppl_em.trace.tracing import Source, trace_program

if TYPE_CHECKING:
    from ppl_em.svi.update import Training


@dataclass(frozen=True, eq=False)
class ApproximateResult(FitResult):
    """A fitted program whose posterior is approximated, in part or in whole, by a guide.

    Beside the members of :class:`~ppl_em.result.FitResult`:

    Args:
        held_out: bound per held-out datum at each look at the validation data, nats.
        num_values: observed numbers in the training data.
        num_trained: number of data trained on; held-out data are not among them.
    """

    held_out: tuple[float, ...] = ()
    num_values: int = 0
    num_trained: float = 0.0
    _run: GuideRun | None = field(default=None, repr=False)
    _saved: SavedGuide | None = field(default=None, repr=False)
    _training: Training | None = field(default=None, repr=False)
    _tracing: Mapping[str, Any] = field(default_factory=dict, repr=False)
    _loader: tuple[int, Any] | None = field(default=None, repr=False)

    @property
    def bits_per_value(self) -> float:
        """Bits per observed value that the bound promises."""
        return -self.objective / math.log(2) / max(1, self.num_values)

    @property
    def held_out_bits_per_value(self) -> float | None:
        """Bits per observed value that the best bound on held-out data promises; None where nothing was held out."""
        if not self.held_out:
            return None
        per_datum = self.num_values / max(1.0, self.num_trained)
        return -max(self.held_out) / math.log(2) / max(per_datum, 1e-300)

    # queries -------------------------------------------------------------------------------------------------

    def query(self, *args: Any, seed: int | None = None, **kwargs: Any) -> Query:
        """The fitted program on given data (a loader among the arguments is gone through once).

        Args:
            args, kwargs: the model's arguments; the training data if none are given.
            seed: of what is drawn; the fit's by default.
        """
        if self._run is None and self._saved is None:
            raise no_guide()
        source, loader, items = self._data(args, kwargs)
        if source is self._source and isinstance(self.plan, Plan):
            plan = self.plan
        else:
            program = trace_program(source, values=self._values, witness=False, **self._tracing)
            plan = self._plan_of(program)
        run = self._guide_on(plan, source)
        self._hold({**plan.program.parameters, **run.parameters})
        if loader is None:
            plate = plan.program.data_plate
            size = plan.program.plates[plate].size if plate is not None else 1
            batches = (Batch(source.args, source.kwargs, size, plate=plate),)
        else:
            batches = tuple(self._batch(item, source, loader, plan) for item in items)
        values = {**self._values, **self.guide_params}
        return Query(plan, self._model, run, values, batches, self.seed if seed is None else seed)

    def _batch(self, item: Any, source: Source, position: int, plan: Plan) -> Batch:
        args, kwargs = call_arguments(item, source, position)
        return Batch(args, kwargs, batch_size(item), plate=plan.program.data_plate, keep_subsamples=True)

    def _hold(self, parameters: Mapping[str, Parameter]) -> None:
        """Modules hold this result's weights: a later fit may have trained them further."""
        values = {**self._values, **self.guide_params}
        with torch.no_grad():
            for name, parameter in parameters.items():
                if parameter.module_tensor is not None and name in values:
                    parameter.module_tensor.copy_(values[name])

    def _guide_on(self, plan: Plan, source: Source) -> GuideRun:
        """The guide for the data of a plan."""
        if self._run is None:
            assert self._saved is not None
            return self._saved.restore(plan.program, source, {**self._values, **self.guide_params})
        if isinstance(self._run, UserRun):
            return UserRun(self._run.callable, self._run.trace, plan.program)
        return self._run

    def _data(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Source, int | None, list[Any]]:
        """Program and data to trace, where a loader stands among the arguments, and its batches."""
        from ppl_em.problem import find_loader, first_batch

        if not args and not kwargs:
            if self._source is None:
                raise PplEmError(message("the training data are not at hand", hint="passing the data"))
            if self._loader is None:
                return self._source, None, []
            position, loader = self._loader
            whole = self._source
            return whole, position, list(loader)
        position = find_loader(args)
        if position is None:
            return Source(self._model, as_tensors(args), as_tensors(dict(kwargs)), self.seed), None, []
        source = first_batch(Source(self._model, args, as_tensors(dict(kwargs)), self.seed), position)
        return source, position, list(args[position])

    def _plan_of(self, program: Any) -> Plan:
        from ppl_em.fitting import ENGINES
        from ppl_em.plan.plan import make_plan
        from ppl_em.planner import rule_lookup

        guided = self._run.trace.names if isinstance(self._run, UserRun) else ()
        guided = guided if self._saved is None else self._saved.guided
        return make_plan(
            program, self._engines or ENGINES, rule_lookup, max_bytes=math.inf, method="svi", guided=guided
        )

    def posterior(self, *args: Any, **kwargs: Any) -> Any:
        """Approximate posterior over the latents, given the training data or other data.

        Args:
            args, kwargs: the model's arguments; the training data if none are given.
        """
        return AmortisedPosterior(self.query(*args, **kwargs))

    def log_prob(self, *args: Any, num_particles: int = 16, **kwargs: Any) -> Tensor:
        """Lower bound on the log marginal likelihood of each datum, nats.

        Args:
            args, kwargs: the model's arguments; the training data if none are given.
            num_particles: draws per datum.

        Returns:
            Shaped by the outermost data plate; a scalar where there is none or where data share latents.
        """
        return self.query(*args, **kwargs).per_datum(num_particles)

    def estimate_log_likelihood(self, num_samples: int = 1000, *args: Any, **kwargs: Any) -> tuple[float, float]:
        """Importance-weighted estimate of the log marginal likelihood, and its standard error, nats.

        Args:
            num_samples: importance samples for each datum.
            args, kwargs: the model's arguments; the training data if none are given.
        """
        return self.query(*args, **kwargs).importance_log_likelihood(num_samples)

    def terms(
        self, params: Mapping[str, Tensor] | None = None, q: Mapping[str, Tensor] | None = None, num_samples: int = 1000
    ) -> dict[str, float]:
        """The two readings of the bound; what cannot be had exactly is estimated by importance sampling.

        Args:
            params: constrained values of the model's parameters; the fitted ones by default.
            q: constrained values of the guide's; the fitted ones by default.
            num_samples: importance samples for each datum.

        Returns:
            ``expected_log_joint`` + ``entropy`` = ``elbo`` ≈ ``log_likelihood`` − ``kl``, nats.
        """
        query = self.query()
        values = {**query.values, **dict(params or {}), **dict(q or {})}
        query = Query(query.plan, query.model, query.guide, values, query.batches, query.seed)
        elbo = float(query.per_datum(16).sum())
        entropy = float(AmortisedPosterior(query).entropy())
        likelihood, _ = query.importance_log_likelihood(num_samples)
        return {
            "expected_log_joint": elbo - entropy,
            "entropy": entropy,
            "elbo": elbo,
            "log_likelihood": likelihood,
            "kl": likelihood - elbo,
        }

    def update(self, *args: Any, **kwargs: Any) -> FitResult:
        """One gradient step on new data, as a new result; this one is unchanged.

        Args:
            args, kwargs: the model's arguments, with the new data.

        Raises:
            PplEmError: the optimiser's state is not at hand (a loaded result).
        """
        from ppl_em.svi.update import update_svi

        return update_svi(self, args, kwargs)

    @property
    def guide(self) -> Any:
        """The fitted guide as an ordinary Pyro guide that draws every latent of the model."""
        if self._run is None and self._saved is None:
            raise no_guide()
        summed = bool(self.plan.to_dict()["blocks"])
        return FittedGuide(
            self._callable,
            self.guide_params,
            self.point_estimates,
            summed,
            lambda args, kwargs: self.posterior(*args, **kwargs),
        )

    @property
    def _callable(self) -> Any:
        """The guide as it was given or built; a saved one is rebuilt when it is called."""
        if self._run is not None:
            return self._run.callable
        return DeferredGuide(lambda args, kwargs: self.query(*args, **kwargs).guide.callable)


def no_guide() -> PplEmError:
    """The error of a question to a saved fit whose approximate posterior was not saved with it."""
    return absent("the guide was not saved with the fit", "saving it anew")
