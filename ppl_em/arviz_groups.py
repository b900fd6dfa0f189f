"""A fit as ArviZ's groups: estimates, data, log-likelihood, latents, predictive draws, and the way there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ppl_em import arviz_bridge
from ppl_em.errors import PplEmError
from ppl_em.ir import Program
from ppl_em.plan.plan import Plan

if TYPE_CHECKING:
    from ppl_em.result import FitResult

__all__ = ["to_arviz"]

PREDICTIVE_DRAWS = 50
"""Enough for a predictive check; more would only make the picture slow."""

MAX_PREDICTIVE_RUNS = 10_000
"""Predictive draws are left out where they would take more sample statements than this."""

Variables = dict[str, tuple[tuple[str, ...], np.ndarray]]
"""Arrays by name, each with its dimension names."""


def to_arviz(result: FitResult) -> Any:
    """Puts a fit into ArviZ's own object.

    The groups are ``point_estimate`` (parameters and point-estimated latents), ``observed_data``,
    ``log_likelihood`` (per datum, at the estimate), ``posterior_latent`` (probabilities of the states of
    discrete latents), ``posterior_predictive``, ``em_trace`` and ``em_restarts``. A point estimate is not
    repeated as draws: there is no group ``posterior`` without draws of the parameters. Sites ``x_0 … x_T``
    are one variable ``x`` with the dimension ``x_time``. Of a loaded result without data there are only the
    groups that need none.

    Args:
        result: A fit.

    Returns:
        An ``arviz.InferenceData`` (ArviZ 0.23) or an ``xarray.DataTree`` (ArviZ 1.x). Dimensions are named by
        plates; those within an event are ``<site>_dim_0``, states ``<site>_state``.
    """
    groups: dict[str, Variables] = {
        "point_estimate": {
            name: _array(value, (), name)
            for name, value in {**result.params, **result.point_estimates}.items()
        },
        "em_trace": {"objective": (("step",), result.history.numpy())},
        "em_restarts": _restarts(result),
    }
    if isinstance(result.plan, Plan):
        program = result.plan.program
        groups["observed_data"] = _stacked(_observed(program))
        groups["log_likelihood"] = _log_likelihood(result, groups["observed_data"])
        groups["posterior_latent"] = _stacked(_latents(result, program))
        groups["posterior_predictive"] = _predictive(result, program)
    return arviz_bridge.to_native(_datasets(groups, _coords(result, groups)), _attrs(result))


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
    coords: dict[str, Any] = {}
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


def _array(value: Tensor, plates: Iterable[str], name: str) -> tuple[tuple[str, ...], np.ndarray]:
    """An array with the names of its leading dimensions; the others are numbered."""
    array = value.detach().cpu().numpy()
    named = tuple(plates)
    return (*named, *(f"{name}_dim_{i}" for i in range(array.ndim - len(named)))), array


def _observed(program: Program) -> Variables:
    """Values of the observed sites, shaped by their plates."""
    found = {}
    for site in program.sites.values():
        if site.role == "observed":
            dims = tuple(dim for dim in site.plates if dim in program.plates)
            extra = tuple(dim for dim in site.value.dims if dim not in dims)
            sizes = {dim: program.plates[dim].size for dim in dims}
            tensor = site.value.expand(sizes).align((*dims, *extra))
            found[site.name] = _array(tensor, (*dims, *extra), site.name)
    return found


def _log_likelihood(result: FitResult, observed: Variables) -> Variables:
    """Log marginal likelihood per datum, as one draw; named by the observed site where there is but one."""
    log_prob = result.log_prob()
    plate = result.plan.program.data_plate
    name = next(iter(observed)) if len(observed) == 1 else "log_likelihood"
    dims = (plate,) if log_prob.dim() == 1 and plate is not None else ()
    return {name: ((*arviz_bridge.SAMPLE_DIMS, *dims), log_prob.detach().cpu().numpy()[None, None])}


def _latents(result: FitResult, program: Program) -> Variables:
    """Posterior probabilities of the states of each summed latent, (plates, state)."""
    posterior = result.posterior()
    found: Variables = {}
    for name, latent in program.latents.items():
        try:
            marginal = posterior.marginal(name)
        except PplEmError:  # not summed: its estimate stands among the parameters
            continue
        probs = marginal.probs.detach().cpu()
        if isinstance(marginal, torch.distributions.Bernoulli):
            probs = torch.stack([1 - probs, probs], -1)
        found[name] = ((*latent.plates, f"{name}_state"), probs.numpy())
    return found


def _predictive(result: FitResult, program: Program) -> Variables:
    """Draws of the observed sites from the posterior predictive, (chain, draw, plates)."""
    if PREDICTIVE_DRAWS * len(program.sites) > MAX_PREDICTIVE_RUNS:
        return {}
    draws = result.predict(num_samples=PREDICTIVE_DRAWS, seed=result.seed)
    found: Variables = {}
    for site in program.sites.values():
        for name in site.members or (site.name,):
            if site.role == "observed" and name in draws:
                plates = tuple(dim for dim in site.plates if dim in program.plates)
                found[name] = _array(draws[name][None], (*arviz_bridge.SAMPLE_DIMS, *plates), name)
    return _stacked(found)


def _restarts(result: FitResult) -> Variables:
    columns = {
        "objective": [restart.objective for restart in result.restarts],
        "num_steps": [restart.num_steps for restart in result.restarts],
        "kind": [restart.kind for restart in result.restarts],
        "status": [restart.status.name.lower() for restart in result.restarts],
    }
    return {name: (("restart",), np.asarray(values)) for name, values in columns.items() if values}


@dataclass(frozen=True)
class _Member:
    """One of the sites ``x_0 … x_T``: its number, and its array with dimension names free of that number."""

    number: int
    dims: tuple[str, ...]
    array: np.ndarray


def _stacked(variables: Variables) -> Variables:
    """Replaces variables ``x_0 … x_T`` of one shape by one variable ``x`` with the dimension ``x_time``.

    A name that is taken, a gap in the numbers or a difference in shape leaves them as they are.
    """
    families: dict[str, list[_Member]] = {}
    for name, (dims, array) in variables.items():
        if match := re.fullmatch(r"(.*[^0-9_])_?([0-9]+)", name):
            stem = match.group(1)
            free = tuple(stem + dim[len(name) :] if dim.startswith(f"{name}_") else dim for dim in dims)
            families.setdefault(stem, []).append(_Member(int(match.group(2)), free, array))
    result = dict(variables)
    for stem, members in families.items():
        members.sort(key=lambda member: member.number)
        first = members[0]
        numbers = [member.number for member in members]
        alike = {(member.dims, member.array.shape) for member in members}
        if len(members) < 3 or len(alike) > 1 or numbers != list(range(numbers[0], numbers[-1] + 1)):
            continue
        if stem in variables:
            continue
        names = [name for name in variables if re.fullmatch(rf"{re.escape(stem)}_?[0-9]+", name)]
        for name in names:
            del result[name]
        at = sum(not dim.startswith(f"{stem}_") for dim in first.dims)
        stack = np.stack([member.array for member in members], at)
        result[stem] = ((*first.dims[:at], f"{stem}_time", *first.dims[at:]), stack)
    return result
