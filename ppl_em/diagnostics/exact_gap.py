"""The bound of a fit by variational inference beside the exact log-likelihood, where an exact engine can sum the program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ppl_em.diagnostics.particles import some_data
from ppl_em.errors import PplEmError
from ppl_em.methods import EM

if TYPE_CHECKING:
    from ppl_em.svi.result import ApproximateResult

#: Data that both engines look at: enough for a mean, cheap to sum exactly.
SOME_DATA = 100


@dataclass(frozen=True)
class ExactGap:
    """Two engines on the same data at the same parameters.

    Args:
        bound: what variational inference promises for these data, nats.
        log_likelihood: the exact value, nats.
        num_data: how many data.
    """

    bound: float
    log_likelihood: float
    num_data: int

    @property
    def per_datum(self) -> float:
        """What the bound loses, nats per datum: the divergence of the approximate from the exact posterior."""
        return (self.log_likelihood - self.bound) / self.num_data


def exact_gap(result: ApproximateResult) -> ExactGap | None:
    """Evaluates the fitted program exactly on a small part of the data; None where no engine can.

    Args:
        result: a fit by variational inference with its data.
    """
    from ppl_em.fitting import fit

    program = result._plan_for(()).program
    approximated = result._plan_for(()).approximated
    if not approximated or any(program.latents[n].kind == "continuous" for n in approximated):
        return None
    try:
        query = some_data(result, SOME_DATA)
        (batch,) = query.batches
        values = {n: query.values[n] for n in program.parameters}
        exact = fit(
            result._model,
            *batch.args,
            model_kwargs=batch.kwargs,
            method=EM(max_steps=0),
            init=values,
            restarts=1,
            progress=False,
        )
    except (PplEmError, ValueError):  # several batches, or more than an exact engine can sum
        return None
    if exact.log_likelihood is None:
        return None
    return ExactGap(float(query.per_datum(64).sum()), exact.log_likelihood, batch.size)
