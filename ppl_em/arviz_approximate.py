"""Fits by variational inference and variational Bayes as ArviZ's groups: draws, moments, bounds, ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ppl_em.arviz_datasets import SAMPLE_DIMS
from ppl_em.arviz_stacking import Variables, labelled, stacked
from ppl_em.errors import PplEmError

if TYPE_CHECKING:
    from ppl_em.ir import Program
    from ppl_em.svi.result import ApproximateResult
    from ppl_em.variational_em.result import VariationalResult

__all__ = ["approximate_groups", "draw_attributes", "factor_groups"]

NUM_DRAWS = 400
"""Draws of the approximate posterior."""

MOMENTS = ("mean", "sd")


def approximate_groups(result: ApproximateResult, program: Program) -> dict[str, Variables]:
    """Groups that only an approximate posterior has.

    ``posterior`` holds draws of the global latents alone: those of single data would be one row of a summary each.
    ``variational`` has, for every approximated latent, mean and standard deviation under the approximate posterior
    (dimension ``moment``), the bound on each datum's log marginal likelihood (``bound``), and the k-hat of each datum's
    importance weights (``k_hat``). ``sbc`` has the ranks of simulated latents among the encoder's draws. What cannot be had
    (data in batches, data that cannot be simulated) is left out.

    Args:
        result: a fit by variational inference, its data at hand.
        program: the traced program.
    """
    groups: dict[str, Variables] = {"svi_trace": _trace(result), "posterior": {}, "variational": {}, "sbc": {}}
    with contextlib.suppress(PplEmError):  # the data came in several batches
        _moments(result, program, groups)
    with contextlib.suppress(PplEmError):
        groups["variational"] |= _by_datum(result, program)
    with contextlib.suppress(PplEmError):  # no latents of single data, or data that are no argument of the model
        groups["sbc"] = _ranks(result)
    return groups


def _trace(result: ApproximateResult) -> Variables:
    """The running estimate of the bound by step, and the bound per held-out datum at each look."""
    found: Variables = {"objective": (("step",), result.history.numpy())}
    if result.held_out:
        found["held_out"] = (("look",), np.asarray(result.held_out))
    return found


def _moments(result: ApproximateResult, program: Program, groups: dict[str, Variables]) -> None:
    approximated = result._plan_for(()).approximated
    draws = result.posterior().sample(NUM_DRAWS, result.seed)
    moments: Variables = {}
    for name in approximated:
        latent, value = program.latents[name], draws[name]
        plates = _dimensions(latent.plates, value.shape[1:], program)
        if latent.kind == "continuous":
            moments[name] = _moments_of(value, name, program)
        if not latent.plates or program.data_plate not in latent.plates:
            groups["posterior"][name] = labelled(value[None], (*SAMPLE_DIMS, *plates), name)
    groups["variational"] |= stacked(moments)


def _dimensions(plates: Iterable[str], shape: tuple[int, ...], program: Program) -> tuple[str, ...]:
    """Names of the plates that the leading dimensions of a value are; none where the shape does not show them."""
    names = tuple(plates)
    alike = len(shape) >= len(names) and all(program.plates[p].size == n for p, n in zip(names, shape, strict=False))
    return names if alike else ()


def _by_datum(result: ApproximateResult, program: Program) -> Variables:
    plate = program.data_plate
    bound = result.log_prob().detach().cpu().numpy()
    found: Variables = {"bound": ((plate,) if plate is not None and bound.ndim else (), bound)}
    if not result._plan_for(()).approximated:
        return found
    with contextlib.suppress(PplEmError):  # no datum has importance weights of its own
        k_hat = result.particles.k_hat.cpu().numpy()
        each = plate if plate is not None and bound.shape == k_hat.shape else "weights"
        found["k_hat"] = ((each,), k_hat)
    return found


def factor_groups(result: VariationalResult, program: Program) -> Variables:
    """The group ``variational`` of a fit by variational Bayes: moments of the factors, the bound on each datum.

    Args:
        result: a fit by variational Bayes, its data at hand.
        program: the traced program.
    """
    found: Variables = {}
    for name, value in result.posterior().sample_globals(NUM_DRAWS, result.seed).items():
        found[name] = _moments_of(value, name, program)
    bound = result.log_prob().detach().cpu().numpy()
    found["bound"] = ((program.data_plate,) if program.data_plate is not None and bound.ndim else (), bound)
    return found


def _moments_of(value: Tensor, name: str, program: Program) -> tuple[tuple[str, ...], np.ndarray]:
    """Mean and standard deviation of draws (n, *shape), (moment, *shape)."""
    plates = _dimensions(_plates(name, program), value.shape[1:], program)
    dims, mean = labelled(value.mean(0), plates, name)
    return ("moment", *dims), np.stack([mean, value.std(0).detach().cpu().numpy()])


def _plates(name: str, program: Program) -> tuple[str, ...]:
    return program.latents[name].plates if name in program.latents else ()


def _ranks(result: ApproximateResult) -> Variables:
    if not result._plan_for(()).approximated:
        return {}
    return {name: (("simulation",), ranks.cpu().numpy()) for name, ranks in result.calibration.values.items()}


def draw_attributes(result: ApproximateResult) -> dict[str, Any]:
    """What the draws of the global latents are, and whether they can be trusted as those of the exact posterior."""
    attributes: dict[str, Any] = {"method": "draws of the approximate posterior", "intervals": "credible"}
    with contextlib.suppress(PplEmError):
        particles = result.particles
        if particles.log_weights.shape[1] == 1:  # one joint posterior, judged as a whole
            k_hat = float(particles.k_hat[0])
            attributes |= {
                "k_hat": k_hat,
                "k_hat_threshold": particles.threshold,
                "reliable": k_hat < particles.threshold,
            }
    return attributes
