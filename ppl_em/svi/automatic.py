"""The automatic guide: an encoder for the latents of data plates, free parameters for all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_em.errors import ModelError, message
from ppl_em.ir import Program
from ppl_em.svi.encoder import Encoder, shapes_for
from ppl_em.svi.groups import Group, Sample, group_latents
from ppl_em.svi.observations import Column, Observations, Reader, columns_of, take
from ppl_em.trace.footprint import isolated
from ppl_em.trace.run import run_program
from ppl_em.trace.tracing import Source

#: Draws from the priors by which variational families are centred and scaled.
PRIOR_DRAWS = 64
#: Name under which the guide's networks are registered with Pyro.
LABEL = "guide"


class AutomaticGuide(PyroModule):
    """A guide built from a program: an ordinary Pyro guide, and the one that ``fit`` trains by default.

    Latents of the same plates are drawn together, outer plates first; an inner plate's encoder also reads the
    latents that were drawn in the plates around it.

    Args:
        program: the traced program.
        source: the program and the data that set the standardisation.
        covariance: ``"diagonal"`` (mean-field) or ``"full"`` over all latents of one element of a plate.
        hidden: widths of the encoders' hidden layers.
        encoder: a module that maps the observed value (a dict by site where there are several) to a distribution
            over the latent (a dict of distributions where there are several), in place of an automatic encoder.
        columns: by column, whether entries may be hidden and how many categories it has, where this is known from other
            data.
    """

    def __init__(
        self,
        program: Program,
        source: Source,
        *,
        covariance: str = "diagonal",
        hidden: Sequence[int] = (128, 128),
        encoder: nn.Module | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        super().__init__()
        self.covariance, self.hidden = covariance, tuple(hidden)
        with isolated(source.seed), torch.no_grad():
            own = {n: p.init for n, p in program.parameters.items()}
            records, draws, declared = _prior_draws(program, source, own)
            self.columns = _like(columns_of(program, records, source), columns or {})
            self.reader = Reader(source.model, self.columns)
            example = self.reader(source.args, source.kwargs, own, source.batch)
            sampled = [
                n
                for n, z in program.latents.items()
                if (z.kind == "continuous" and n not in program.parameters) or n in program.refused
            ]
            self.groups = group_latents(sampled, records, draws, covariance, program.refused)
            self.sizes = {n: p.size for n, p in program.plates.items()}
            self.full_sizes = {n: p.full_size for n, p in program.plates.items()}
            self.declared = declared
            self.given = encoder
            networks: dict[str, nn.Module] = {}
            free: dict[str, nn.Parameter] = {}
            for i, group in enumerate(self.groups):
                amortised = any(program.plates[n].data for n in group.names) and bool(
                    shapes_for(self.columns, group.names)
                )
                if amortised and encoder is not None:
                    networks[str(i)] = encoder
                elif amortised:
                    networks[str(i)] = self._encoder(i, example, hidden, _dtype(draws, group))
                else:
                    sizes = [program.plates[n].size for n in group.names]
                    start = group.narrow().expand(*sizes, group.num_inputs).to(_dtype(draws, group))
                    free[str(i)] = nn.Parameter(start.clone())
        scopes = program.runner.scopes
        #: Groups whose log q is sampled: their priors depend on summed latents, or their parameters are free.
        self.sampled = [str(i) in free or any(scopes[m.name] for m in g.members) for i, g in enumerate(self.groups)]
        self.networks = nn.ModuleDict(networks)
        self.free = nn.ParameterDict(free)

    def _encoder(self, index: int, example: Observations, hidden: Sequence[int], dtype: torch.dtype) -> Encoder:
        group = self.groups[index]
        parents = sum(sum(getattr(m.family, "size", 0) for m in g.members) for g in self._parents(index))
        return Encoder(group.names, self.columns, example, group.num_inputs, parents, hidden, dtype)

    def _parents(self, index: int) -> list[Group]:
        """Groups of plates around this group's."""
        mine = set(self.groups[index].names)
        continuous = [g for g in self.groups[:index] if any(hasattr(m.family, "size") for m in g.members)]
        return [g for g in continuous if g.names and set(g.names) < mine]

    def draw(
        self,
        observed: Observations,
        sample: Sample,
        indices: Mapping[str, Tensor] | None = None,
        held: bool = False,
    ) -> dict[str, Tensor]:
        """One reparameterised draw of all latents, values by name.

        Args:
            observed: values and masks by column.
            sample: draws from a distribution under a name.
            indices: elements that ``observed`` holds, by plate, where these are not all.
            held: let log q have gradients along the draw only, where no closed form will stand in for it.
        """
        values: dict[str, Tensor] = {}
        for index, group in enumerate(self.groups):
            if self.given is not None and str(index) in self.networks:
                values.update(self._given(group, observed, sample))
            else:
                inputs = self._inputs(index, observed, indices or {}, values)
                values.update(group.draw(inputs, sample, held and self.sampled[index]))
        return values

    def _inputs(
        self, index: int, observed: Observations, indices: Mapping[str, Tensor], values: Mapping[str, Tensor]
    ) -> Tensor:
        key, group = str(index), self.groups[index]
        if key in self.free:
            inputs = self.free[key]
            for axis, name in enumerate(group.names):
                if name in indices:
                    inputs = inputs.index_select(axis, indices[name])
            return inputs
        parents = {g.members[0].name: _spread(g, group, values) for g in self._parents(index)}
        return self.networks[key](observed, parents)

    def _given(self, group: Group, observed: Observations, sample: Sample) -> dict[str, Tensor]:
        assert self.given is not None
        values = {c.name: observed[c.name][0] for c in self.columns}
        found = self.given(next(iter(values.values())) if len(values) == 1 else values)
        if isinstance(found, torch.distributions.Distribution):
            found = {group.members[0].name: found}
        missing = [m.name for m in group.members if m.name not in found]
        if missing:
            raise ModelError(
                message(
                    "the encoder gives no distribution",
                    site=missing[0],
                    value=sorted(found),
                    hint="a dict by latent's name",
                )
            )
        return {m.name: sample(m.name, found[m.name], None, None) for m in group.members}

    def read(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], parameters: Mapping[str, Tensor], batch: bool = False
    ) -> Observations:
        """Observations of a call, see :class:`~ppl_em.svi.observations.Reader`."""
        return self.reader(args, kwargs, parameters, batch)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw all latents by ``pyro.sample``, given the data that the guide is called with.

        Returns:
            Values by site.
        """
        pyro.module(LABEL, self.networks)
        for key, value in self.free.items():
            pyro.param(f"{LABEL}.free.{key}", value)
        observed = self.reader(args, kwargs, {})
        plates, indices = self._plates(observed)
        for name, index in indices.items():
            observed = take(observed, self.columns, name, index)
        home = {m.name: g for g in self.groups for m in g.members}

        def sample(name: str, fn: Any, _: Any, beside: str | None) -> Tensor:
            with ExitStack() as stack:
                for plate in home[beside or name].names:
                    stack.enter_context(plates[plate])
                return pyro.sample(name, fn, infer={"is_auxiliary": True} if beside else {})

        return self.draw(observed, sample, indices)

    def _plates(self, observed: Observations) -> tuple[dict[str, Any], dict[str, Tensor]]:
        plates, indices = {}, {}
        for name, dim in dict.fromkeys(p for g in self.groups for p in g.plates):
            size = self.full_sizes[name]
            for column in self.columns:
                value = observed[column.name][0]
                axis = column.axis(name, value)
                if axis is not None and value.shape[axis] > 1:
                    size = value.shape[axis]
            subsample = self.declared.get(name)
            plate = pyro.plate(
                name, size, subsample_size=subsample if subsample and subsample < size else None, dim=dim
            )
            plates[name] = plate
            if plate.subsample_size < size:
                indices[name] = plate._indices
        return plates, indices


def _spread(parent: Group, group: Group, values: Mapping[str, Tensor]) -> Tensor:
    """A parent group's unconstrained values, (*plates of the group, n), size 1 along plates that it does not have."""
    flat = parent.free_values(values)
    sizes = dict(zip(range(1 - flat.dim(), 0), flat.shape, strict=False))
    mine = {n: sizes[d - (parent.plates[-1][1] + 1)] for n, d in parent.plates}
    return flat.reshape(*(mine.get(n, 1) for n in group.names), flat.shape[-1])


def _like(columns: Sequence[Column], known: Mapping[str, Sequence[Any]]) -> tuple[Column, ...]:
    """Columns read as those of other data were."""
    return tuple(
        replace(c, masked=bool(known[c.name][0]), categories=int(known[c.name][1])) if c.name in known else c
        for c in columns
    )


def _dtype(draws: Mapping[str, Tensor], group: Group) -> torch.dtype:
    dtype = draws[group.members[0].name].dtype
    return dtype if dtype.is_floating_point else torch.get_default_dtype()


def _prior_draws(
    program: Program, source: Source, start: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, int]]:
    """A run at the start, draws of every continuous latent from its prior, and declared subsample sizes."""

    def assign(name: str, fn: Any) -> Tensor | None:
        return start.get(name)

    run = run_program(
        source.model, source.args, source.kwargs, assign=assign, parameters=start, keep_subsamples=source.batch
    )
    draws = {}
    for name, record in run.records.items():
        drawn = record.role == "latent" and (program.latents[name].kind == "continuous" or name in program.refused)
        if drawn and name not in start:
            count = max(1, PRIOR_DRAWS // max(1, record.value.numel() // 1000 + 1))
            draws[name] = record.fn.sample((count,))
    return run.records, draws, {} if source.batch else run.declared
