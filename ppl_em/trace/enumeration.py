"""Runs of a program with its discrete latents enumerated in parallel."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor

from ppl_em.errors import PlanError, PplEmError, message
from ppl_em.ir import Factor, Latent, Site
from ppl_em.trace.execution_paths import Path, Paths
from ppl_em.trace.layout import Layout
from ppl_em.trace.observe import fill_masked
from ppl_em.trace.record import Record, bound_of
from ppl_em.trace.run import run_program

if TYPE_CHECKING:
    from ppl_em.trace.tracing import Source


class NotEnumerable(PlanError):
    """The program cannot be run on all values of its discrete latents at once."""


class Outgrown(Exception):
    """A latent has more values than the support that was foreseen for it.

    Args:
        latent: its name.
        cardinality: number of values.
    """

    def __init__(self, latent: str, cardinality: int) -> None:
        super().__init__(latent)
        self.latent, self.cardinality = latent, cardinality


class Enumeration:
    """A program, the layout of its enumerated latents, and values for its other latents.

    Args:
        source: the program.
        layout: registers of the summed latents.
        summed: discrete latents by name.
        points: global continuous latents, given among the parameters.
        local: values of latents that are neither summed nor points (conditioned on).
        scopes: summed latents on which each site depends.
        by_path: summed latents that take one value per run.
        seen: the sites of runs in which provenance was followed.
    """

    def __init__(
        self,
        source: Source,
        layout: Layout,
        summed: Mapping[str, Latent],
        points: tuple[str, ...],
        local: Mapping[str, Tensor],
        scopes: Mapping[str, tuple[str, ...]],
        by_path: Collection[str] = (),
        seen: Mapping[str, Record] | None = None,
    ) -> None:
        self.source, self.layout, self.summed, self.points, self.local = source, layout, summed, points, local
        self.scopes = scopes
        self.by_path = frozenset(by_path)
        self.seen = seen or {}
        steering = {z: v for z, v in summed.items() if z in self.by_path}
        self.paths = Paths(layout, steering, scopes, summed, self.seen) if steering else None

    def run(self, parameters: Mapping[str, Tensor], given: Mapping[str, Tensor] | None = None) -> dict[str, Record]:
        """Run the program; latents take the given values, else all their values along their register.

        Args:
            parameters: constrained values, point-estimated latents among them.
            given: values of latents that are not to be enumerated.

        Raises:
            NotEnumerable: the program cannot be run on all values at once.
            Outgrown: a support is larger than foreseen.
        """
        given = {**self.local, **(given or {})}
        if self.paths is None or all(z in given for z in self.by_path):
            return self._once(parameters, given)
        return self.paths.merge(lambda path: self._once(parameters, {**given, **self.at(path)}))

    def at(self, path: Path) -> dict[str, Tensor]:
        """Values of the latents that steer a path; the same for all elements of a latent's plates."""
        values = {}
        for z, k in path.items():
            support, fn = self.summed[z].values, self.seen[z].fn
            values[z] = support[min(k, len(support) - 1)].expand(tuple(fn.batch_shape) + tuple(fn.event_shape))
        return values

    def _assign(
        self, name: str, fn: Any, parameters: Mapping[str, Tensor], given: Mapping[str, Tensor]
    ) -> Tensor | None:
        if name in self.points:
            return parameters[name]
        latent = self.summed.get(name)
        if latent is None:
            return given.get(name)
        count = _cardinality(fn, latent)
        if count is not None and count > len(latent.values):
            raise Outgrown(name, count)
        if name in given:
            return given[name] if count is None or name in self.by_path else _within(given[name], fn, count)
        support = latent.values if count is None else latent.values[:count]
        return self.layout.enumerated(name, support)

    def some_steps(
        self, parameters: Mapping[str, Tensor], assign: Callable[[str], Tensor | None], steps: tuple[int, ...]
    ) -> dict[str, Record]:
        """Run some steps of the program's time loops one by one, every latent at a given value."""
        run = run_program(
            self.source.model,
            self.source.args,
            self.source.kwargs,
            assign=lambda name, fn: parameters[name] if name in self.points else assign(name),
            parameters=parameters,
            keep_subsamples=self.source.batch,
            time=steps,
        )
        return run.records

    def _once(self, parameters: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Record]:
        try:
            run = run_program(
                self.source.model,
                self.source.args,
                self.source.kwargs,
                assign=lambda name, fn: self._assign(name, fn, parameters, given),
                parameters=parameters,
                keep_subsamples=self.source.batch,
                time=self.source.time,
            )
        except (PplEmError, Outgrown):
            raise
        except Exception as error:
            if not self.summed:
                raise
            hint = "operations that broadcast over extra dimensions on the left (Vindex, torch.where, x.gather)"
            raise NotEnumerable(
                message(
                    "the program cannot be run with all values of its discrete latents at once",
                    value=", ".join(self.summed),
                    why=f"{type(error).__name__}: {error}",
                    hint=hint,
                )
            ) from error
        return run.records

    def log_factors(
        self, parameters: Mapping[str, Tensor], sites: Mapping[str, Site], scopes: Mapping[str, tuple[str, ...]]
    ) -> dict[str, Factor]:
        """Log-factor of each site from a run at the given parameters."""
        records = self.run(parameters)
        return {n: site_log_factor(fill_masked(records[n]), s, self.layout, scopes[n]) for n, s in sites.items()}


def site_log_factor(record: Record, site: Site, layout: Layout, scope: tuple[str, ...]) -> Factor:
    """Log-density of one recorded site by name; its mask as it stands in this run applied, its scale not."""
    elementwise = layout.name_dims(record, record.log_prob(), 0, record.inner, scope)
    if site.mask is not None:
        site = replace(site, mask=mask_factor(record, layout, scope))
    return site.finish(elementwise)


def mask_factor(record: Record, layout: Layout, scope: tuple[str, ...]) -> Factor | None:
    """Which elements of a site count, by name: the handlers' mask and the distribution's own."""
    masks = []
    if record.mask is not None and record.mask is not True:
        masks.append(layout.name_dims(record, torch.as_tensor(record.mask), 0, 0, scope))
    wrapped = None if record.peeled is None else record.peeled.mask
    if wrapped is not None and wrapped is not True:
        assert record.peeled is not None
        masks.append(layout.name_dims(record, torch.as_tensor(wrapped), 0, record.peeled.inner, scope))
    if not masks:
        return None
    total = masks[0]
    for mask in masks[1:]:
        total = total * mask
    return total


def _unwrapped(fn: Any) -> Any:
    while isinstance(fn, (MaskedDistribution, ExpandedDistribution)):
        fn = fn.base_dist
    return fn


def _cardinality(fn: Any, latent: Latent) -> int | None:
    """Number of values of a latent as it stands in this run, where that can differ between runs or elements."""
    if latent.event_shape or latent.folded:
        return None
    fn = _unwrapped(fn)
    total = bound_of(fn)
    if total is not None:
        return 1 + int(total.max())
    if isinstance(fn, torch.distributions.Categorical):
        return fn._num_events
    return None


def _within(value: Tensor, fn: Any, count: int) -> Tensor:
    """A given value brought inside the support as it stands in this run."""
    total = bound_of(_unwrapped(fn))
    if total is not None:
        return torch.minimum(value, total.to(value.dtype))
    return value if int(value.max()) < count else value.clamp_max(count - 1)
