"""A fit as ArviZ's groups: estimates, data, log-likelihood, latents, predictive draws, and the way there."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ppl_em import arviz_bridge
from ppl_em.arviz_approximate import MOMENTS, approximate_groups, draw_attributes, factor_groups
from ppl_em.arviz_prior import prior_groups
from ppl_em.arviz_stacking import Variables, labelled, stacked
from ppl_em.errors import PplEmError
from ppl_em.ir import Program
from ppl_em.per_datum import separate
from ppl_em.plan.plan import Plan
from ppl_em.trace.missing import shown

if TYPE_CHECKING:
    from ppl_em.result import FitResult
    from ppl_em.svi.result import ApproximateResult
    from ppl_em.variational_em.result import VariationalResult

__all__ = ["to_arviz"]

PREDICTIVE_DRAWS = 50
"""Reconstructions: enough for a picture."""

MAX_PREDICTIVE_RUNS = 20_000
"""Predictive draws are left out where they would take more sample statements than this."""


def to_arviz(result: FitResult) -> Any:
    """Puts a fit into ArviZ's own object.

    The groups are ``posterior`` (Laplace draws of the parameters, importance-resampled; its attributes hold their
    k-hat), ``sample_stats`` (``lp``, the objective at each draw), ``log_likelihood`` (exact, per datum, at each
    draw), ``posterior_predictive`` (latents drawn anew), ``reconstruction`` (latents from their posterior),
    ``observed_data``, ``constant_data`` (other arguments of the model), ``point_estimate``,
    ``point_log_likelihood`` (per datum, at the estimate), ``posterior_latent`` (probabilities of the states of
    discrete latents), ``em_trace`` and ``em_restarts``. Where global latents have priors there are also ``prior`` and
    ``prior_predictive``. After variational Bayes ``posterior`` holds draws from the factors and ``variational`` their
    moments. A fit by variational inference has ``svi_trace``, ``variational`` and ``sbc`` in place of those
    of an exact one, and its ``posterior`` holds draws of the approximate posterior of global latents.

    A point estimate is not repeated as draws: where there are no draws of the parameters, there are no groups
    ``posterior``, ``sample_stats`` and ``log_likelihood``, and the attribute ``posterior_absent`` says why. Sites
    ``x_0 … x_T`` are one variable ``x`` with the dimension ``x_time``. Of a loaded result without data there are
    only the groups that need none.

    Args:
        result: A fit.

    Returns:
        An ``arviz.InferenceData`` (ArviZ 0.23) or an ``xarray.DataTree`` (ArviZ 1.x). Dimensions are named by
        plates; those within an event are ``<site>_dim_0``, states ``<site>_state``.
    """
    approximate = isinstance(result.plan, Plan) and result.plan.method == "svi"
    groups: dict[str, Variables] = {
        "point_estimate": {
            name: labelled(value, (), name) for name, value in {**result.params, **result.point_estimates}.items()
        },
        "em_restarts": _restarts(result),
    }
    if not approximate:
        groups["em_trace"] = {"objective": (("step",), result.history.numpy())}
    if isinstance(result.plan, Plan):
        program = result.plan.program
        groups["observed_data"] = stacked(_observed(program))
        groups["constant_data"] = _constant(result, program)
        groups["posterior_latent"] = stacked(_latents(result, program))
        if approximate:
            groups |= approximate_groups(cast("ApproximateResult", result), program)
        elif result.objective_name == "elbo":
            groups["variational"] = factor_groups(cast("VariationalResult", result), program)
            groups |= _draws(result, groups["observed_data"])
        else:
            groups["point_log_likelihood"] = _point_log_likelihood(result, groups["observed_data"])
            groups |= _draws(result, groups["observed_data"])
        groups |= _predictive(result, program)
        groups |= prior_groups(result, program)
    datasets = _datasets(groups, _coords(result, groups))
    attrs = _attrs(result)
    if groups.get("posterior"):
        about = draw_attributes(cast("ApproximateResult", result)) if approximate else _draw_attrs(result)
        datasets["posterior"] = datasets["posterior"].assign_attrs(arviz_bridge.encode(about))
    elif (why := _why_no_draws(result)) is not None:
        attrs["posterior_absent"] = why
    return arviz_bridge.to_native(datasets, attrs)


def _datasets(groups: Mapping[str, Variables], coords: Mapping[str, Any]) -> dict[str, xr.Dataset]:
    """Builds the groups, a plate renamed alike in all of them."""
    taken = {name for variables in groups.values() for name in variables}
    return {
        group: arviz_bridge.dataset(variables, _fitting(coords, variables), taken=taken)
        for group, variables in groups.items()
    }


def _fitting(coords: Mapping[str, Any], variables: Variables) -> dict[str, Any]:
    """Keeps the labels whose number is the dimension's size."""
    sizes = {d: n for dims, array in variables.values() for d, n in zip(dims, array.shape, strict=True)}
    return {dim: labels for dim, labels in coords.items() if sizes.get(dim) == len(labels)}


def _coords(result: FitResult, groups: Mapping[str, Variables]) -> dict[str, Any]:
    """The user's labels; else column names for the event dimension of the data that has as many elements."""
    coords: dict[str, Any] = {"moment": list(MOMENTS)}
    for columns in result._columns:
        for name, (dims, array) in groups.get("observed_data", {}).items():
            if dims and dims[-1] == f"{name}_dim_0" and array.shape[-1] == len(columns):
                coords[dims[-1]] = columns
    return {**coords, **result._coords}


def _attrs(result: FitResult) -> dict[str, Any]:
    return {
        "inference_library": "ppl_em",
        "inference_library_version": _version(),
        "objective": result.objective,
        "objective_name": result.objective_name,
        "exact": result.exact,
        "status": str(result.status),
        "converged": result.converged,
        "num_steps": result.num_steps,
        "num_parameters": result.num_parameters,
        "num_observations": result.num_observations,
        "seed": result.seed,
        "plan": str(result.plan),
    }


def _version() -> str:
    try:
        return metadata.version("ppl-em")
    except metadata.PackageNotFoundError:  # run from a source tree
        return "unknown"


def _observed(program: Program) -> Variables:
    """Values of the observed sites, shaped by their plates."""
    found = {}
    for site in program.sites.values():
        if site.role == "observed":
            dims = tuple(dim for dim in site.plates if dim in program.plates)
            extra = tuple(dim for dim in site.value.dims if dim not in dims)
            sizes = {dim: program.plates[dim].size for dim in dims}
            tensor = shown(site.value, site.missing).expand(sizes).align((*dims, *extra))
            found[site.name] = labelled(tensor, (*dims, *extra), site.name)
    return found


def _scored_name(result: FitResult, observed: Variables) -> tuple[str, tuple[str, ...]]:
    """Name and dimensions of the log-likelihood: the observed site's where there is but one."""
    plate = result.plan.program.data_plate
    name = next(iter(observed)) if len(observed) == 1 else "log_likelihood"
    return name, (plate,) if plate is not None and separate(result.plan) else ()


def _point_log_likelihood(result: FitResult, observed: Variables) -> Variables:
    """Log marginal likelihood per datum, at the estimate."""
    name, dims = _scored_name(result, observed)
    return {name: (dims, result.log_prob().detach().cpu().numpy())}


def _why_no_draws(result: FitResult) -> str | None:
    """Why there are no draws of the parameters; None if there are."""
    try:
        return None if len(result._draws) else "there are no parameters"
    except PplEmError as error:
        return " ".join(str(error).split())


def _draws(result: FitResult, observed: Variables) -> dict[str, Variables]:
    """Groups over the draws of the parameters; none where there are no draws."""
    if _why_no_draws(result) is not None:
        return {}
    draws = result._draws
    groups: dict[str, Variables] = {
        "posterior": {n: labelled(v[None], arviz_bridge.SAMPLE_DIMS, n) for n, v in draws.items()},
        "sample_stats": {"lp": (arviz_bridge.SAMPLE_DIMS, draws.objective.numpy()[None])},
    }
    with contextlib.suppress(PplEmError):  # the data are one unit, or too many: no pointwise log-likelihood
        name, dims = _scored_name(result, observed)
        scored = result._draw_log_likelihoods.numpy()[None]
        groups["log_likelihood"] = {name: ((*arviz_bridge.SAMPLE_DIMS, *dims), scored)}
    return groups


def _draw_attrs(result: FitResult) -> dict[str, Any]:
    draws = result._draws
    proposal = "draws of the factors" if result.objective_name == "elbo" else "Laplace draws in free coordinates"
    return {
        "method": proposal + (", importance-resampled" if draws.corrected else ""),
        "k_hat": draws.k_hat,
        "k_hat_threshold": draws.threshold,
        "reliable": draws.reliable,
        "intervals": "credible where there is a prior, else confidence",
    }


def _constant(result: FitResult, program: Program) -> Variables:
    """Numeric arguments of the model that are not what is observed."""
    source = result._source_for(())
    try:
        bound = inspect.signature(source.model).bind(*source.args, **source.kwargs).arguments
    except (TypeError, ValueError):
        return {}
    seen = [s.value.tensor for s in program.sites.values() if s.role == "observed"]
    found = {}
    for name, value in bound.items():
        data = isinstance(value, Tensor) and value.numel() > 1
        if data and not any(value.numel() == t.numel() and torch.equal(value.reshape(-1), t.reshape(-1)) for t in seen):
            found[name] = labelled(value, (), name)
    return found


def _latents(result: FitResult, program: Program) -> Variables:
    """Posterior probabilities of the states of each summed latent, (plates, state)."""
    posterior = result.posterior()
    found: Variables = {}
    for name, latent in program.latents.items():
        try:
            marginal = posterior.marginal(name)
        except PplEmError:  # not summed: its estimate stands among the parameters
            continue
        if not hasattr(marginal, "probs"):  # a continuous latent has no states
            continue
        probs = marginal.probs.detach().cpu()
        if isinstance(marginal, torch.distributions.Bernoulli):
            probs = torch.stack([1 - probs, probs], -1)
        found[name] = ((*latent.plates, f"{name}_state"), probs.numpy())
    return found


def _predictive(result: FitResult, program: Program) -> dict[str, Variables]:
    """Draws of the observed sites, (chain, draw, plates): latents drawn anew, and latents from their posterior."""
    if PREDICTIVE_DRAWS * len(program.sites) > MAX_PREDICTIVE_RUNS:
        return {}
    groups = {"posterior_predictive": _drawn(program, result._predictive_draws)}
    if result.plan.blocks or result.plan.approximated:
        again = result.predict(num_samples=PREDICTIVE_DRAWS, seed=result.seed)
        groups["reconstruction"] = _drawn(program, again)
    return groups


def _drawn(program: Program, draws: Mapping[str, Tensor]) -> Variables:
    found: Variables = {}
    for site in program.sites.values():
        for name in site.members or (site.name,):
            if site.role == "observed" and name in draws:
                plates = tuple(dim for dim in site.plates if dim in program.plates)
                found[name] = labelled(draws[name][None], (*arviz_bridge.SAMPLE_DIMS, *plates), name)
    return stacked(found)


def _restarts(result: FitResult) -> Variables:
    columns = {
        "objective": [restart.objective for restart in result.restarts],
        "num_steps": [restart.num_steps for restart in result.restarts],
        "kind": [restart.kind for restart in result.restarts],
        "status": [restart.status.name.lower() for restart in result.restarts],
    }
    return {name: (("restart",), np.asarray(values)) for name, values in columns.items() if values}
