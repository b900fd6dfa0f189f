"""Runs of a program with its discrete latents enumerated in parallel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ppl_em.errors import PlanError, PplEmError, message
from ppl_em.ir import Factor, Latent, Site
from ppl_em.trace.layout import Layout
from ppl_em.trace.observe import fill_masked
from ppl_em.trace.run import Record, run_program

if TYPE_CHECKING:
    from ppl_em.trace.tracing import Source


class Enumeration:
    """A program, the layout of its enumerated latents, and values for its other latents.

    Args:
        source: the program.
        layout: registers of the summed latents.
        summed: discrete latents by name.
        points: global continuous latents, given among the parameters.
        local: values of continuous latents that are neither summed nor points (conditioned on).
        scopes: summed latents on which each site depends.
    """

    def __init__(
        self,
        source: Source,
        layout: Layout,
        summed: Mapping[str, Latent],
        points: tuple[str, ...],
        local: Mapping[str, Tensor],
        scopes: Mapping[str, tuple[str, ...]],
    ) -> None:
        self.source, self.layout, self.summed, self.points, self.local = source, layout, summed, points, local
        self.scopes = scopes

    def run(self, parameters: Mapping[str, Tensor], given: Mapping[str, Tensor] | None = None) -> dict[str, Record]:
        """Run the program; latents take the given values, else all their values along their register.

        Args:
            parameters: constrained values, point-estimated latents among them.
            given: values of latents that are not to be enumerated.

        Raises:
            PlanError: the program cannot be run on all values at once.
        """
        given = {**self.local, **(given or {})}

        def assign(name: str, fn: Any) -> Tensor | None:
            if name in given:
                return given[name]
            if name in self.points:
                return parameters[name]
            if name in self.summed:
                support = self.summed[name].support
                assert support is not None
                return self.layout.enumerated(name, support)
            return None

        try:
            run = run_program(
                self.source.model,
                self.source.args,
                self.source.kwargs,
                assign=assign,
                parameters=parameters,
                keep_subsamples=self.source.batch,
            )
        except PplEmError:
            raise
        except Exception as error:
            if not self.summed:
                raise
            raise PlanError(
                message(
                    "the program cannot be run with all values of its discrete latents at once",
                    value=", ".join(self.summed),
                    why=f"{type(error).__name__}: {error}",
                    hint="operations that broadcast over extra dimensions on the left (Vindex, torch.where, x.gather)",
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
    """Log-density of one recorded site by name; mask applied, scale not."""
    inner = 0 if record.peeled is None else record.peeled.inner
    elementwise = layout.name_dims(record, record.log_prob(), 0, inner, scope)
    return site.finish(elementwise)
