"""Refits to data drawn from the fit, or drawn from the data: uncertainty without a normal approximation.

Reference:
    Efron, B. & Tibshirani, R. (1993). An introduction to the bootstrap. Chapman & Hall.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor

from ppl_em.diagnostics.alignment import align, exchangeable_labels
from ppl_em.diagnostics.coordinates import element_labels
from ppl_em.em.loop import Machine, State, run_em
from ppl_em.errors import PplEmError, message
from ppl_em.methods import EM
from ppl_em.per_datum import separate
from ppl_em.plan.plan import Plan
from ppl_em.status import Status
from ppl_em.trace.footprint import isolated

if TYPE_CHECKING:
    from ppl_em.result import FitResult

#: Share of refits whose labels are ambiguous above which nothing is said about single components.
MOST_AMBIGUOUS = 0.05


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Estimates of all refits that reached an optimum, labels aligned to the fit's.

    Args:
        kind: ``"parametric"`` or ``"case"``.
        estimates: by parameter, (B, *shape).
        num_failed: refits that did not end at an optimum (collapsed, undefined); they are left out.
        num_ambiguous: refits whose labels could have been assigned otherwise nearly as well.
    """

    kind: str
    estimates: dict[str, Tensor]
    num_failed: int
    num_ambiguous: int

    @property
    def num(self) -> int:
        """Refits that are kept."""
        return min((len(v) for v in self.estimates.values()), default=0)

    def standard_errors(self) -> dict[str, Tensor]:
        """Standard deviation over the refits, by parameter.

        Raises:
            PplEmError: labels cannot be aligned, so components have no identity.
        """
        self._require_labels()
        return {n: v.std(0) for n, v in self.estimates.items()}

    def conf_int(self, level: float = 0.95) -> pd.DataFrame:
        """Percentile intervals; one row for each element, columns ``lower``, ``upper``.

        Raises:
            PplEmError: labels cannot be aligned.
        """
        self._require_labels()
        if not 0 < level < 1:
            raise PplEmError(message("a confidence level lies between 0 and 1", value=level))
        tail = torch.tensor([0.5 - level / 2, 0.5 + level / 2], dtype=torch.float64)
        labels = [label for n, v in self.estimates.items() for label in element_labels(n, v.shape[1:])]
        flat = torch.cat([v.double().reshape(len(v), -1) for v in self.estimates.values()], 1)
        low, high = flat.quantile(tail, 0)
        return pd.DataFrame({"lower": low.numpy(), "upper": high.numpy()}, index=pd.Index(labels, name="parameter"))

    def _require_labels(self) -> None:
        if self.num_ambiguous > MOST_AMBIGUOUS * max(self.num, 1):
            raise PplEmError(
                message(
                    "the labels of components cannot be aligned",
                    value=f"{self.num_ambiguous} of {self.num} refits are ambiguous",
                    why="components overlap too much to have an identity",
                    hint="fewer components, or statistics that do not depend on labels",
                )
            )


def bootstrap(result: FitResult, num: int, kind: str, seed: int) -> Bootstrap:
    """Refit to new data, starting at the estimates.

    Args:
        result: an exact fit with its data.
        num: number of refits.
        kind: ``"parametric"`` (data from the fitted program, latents drawn anew; what the program computes from its
            arguments other than observations stays) or ``"case"`` (data drawn with replacement).
        seed: of the data.

    Raises:
        PplEmError: unknown kind, too few refits, or a case bootstrap of data that are not independent.
    """
    if num < 2:
        raise PplEmError(message("a bootstrap needs at least 2 refits", value=num))
    if result.log_likelihood is None:
        raise PplEmError(message("the bootstrap needs an exact fit", hint='method="em"'))
    if kind not in ("parametric", "case"):
        raise PplEmError(message("unknown kind of bootstrap", value=kind, hint='"parametric" or "case"'))
    plans = _resampled(result, num, seed) if kind == "case" else _simulated(result, num, seed)
    plan = result._plan_for(())
    labels = exchangeable_labels(plan, result._values)
    try:
        errors: Mapping[str, Tensor] = result.standard_errors()
    except PplEmError:
        errors = {}
    kept: list[dict[str, Tensor]] = []
    failed = ambiguous = 0
    try:
        for refit in plans:
            with isolated(seed):
                state = _refit(refit, result._values)
            if state.status is not Status.CONVERGED:
                failed += 1
                continue
            aligned = align(state.parameters, result._values, labels, errors)
            ambiguous += aligned.ambiguous
            kept.append({n: v.detach().clone() for n, v in aligned.values.items()})
    finally:
        plan.program.leaves(result._values)
    free = [n for n, p in plan.program.parameters.items() if not p.frozen]
    if len(kept) < 2:
        raise PplEmError(message("no refit reached an optimum", value=f"{failed} of {num} failed"))
    return Bootstrap(kind, {n: torch.stack([k[n] for k in kept]) for n in free}, failed, ambiguous)


def _refit(plan: Plan, start: Mapping[str, Tensor]) -> State:
    machine = Machine(plan, EM(), torch.Generator().manual_seed(0))
    state = None
    for state in run_em(machine, dict(start)):  # noqa: B007 - the last state is what is wanted
        pass
    assert state is not None
    return state


def _resampled(result: FitResult, num: int, seed: int) -> Iterator[Plan]:
    """Plans in which each datum counts as often as it was drawn."""
    from ppl_em.planner import weighted

    plan = result._plan_for(())
    plate = plan.program.data_plate
    if not separate(plan) or plate is None:
        raise PplEmError(
            message(
                "the case bootstrap needs independent data",
                why="the likelihood is not a product over a data plate",
                hint='kind="parametric"',
            )
        )
    size = plan.program.plates[plate].size
    generator = torch.Generator().manual_seed(seed)

    def plans() -> Iterator[Plan]:
        for _ in range(num):
            drawn = torch.randint(size, (size,), generator=generator)
            yield result._plan_of(weighted(plan.program, torch.bincount(drawn, minlength=size).double()))

    return plans()


def _simulated(result: FitResult, num: int, seed: int) -> Iterator[Plan]:
    """Plans in which the observations were drawn from the fitted program."""
    from ppl_em.trace.reobserve import Reobserved
    from ppl_em.trace.tracing import Source, trace_program

    plan = result._plan_for(())
    source = result._source_for(())
    draws = result.predict(num_samples=num, latents="prior", seed=seed)
    frozen = tuple(n for n, p in plan.program.parameters.items() if p.frozen)

    def plans() -> Iterator[Plan]:
        for i in range(num):
            model = Reobserved(source.model, {n: v[i] for n, v in draws.items()})
            again = Source(model, source.args, source.kwargs, source.seed)
            program = trace_program(again, values=result._values, freeze=frozen, witness=False)
            yield result._plan_of(program)

    return plans()
