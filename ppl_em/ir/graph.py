"""The program as a value: plates, latents, parameters, sites and how they hang together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_em.ir.design import Design
from ppl_em.ir.factor import Factor
from ppl_em.ir.transform import IDENTITY, Transform


@dataclass(frozen=True)
class Plate:
    """A conditional-independence context.

    Args:
        name: the plate's name (made up from the site's name for an undeclared batch dimension).
        size: number of elements seen in this call.
        full_size: number of elements that they stand for (differs in a subsampled plate).
        declared: False for a batch dimension that the program uses without a plate.
        data: True if the plate encloses an observation, or an observation picks its elements by an observed index.
        dim: the batch dimension that it occupies, counted from the right (negative).
    """

    name: str
    size: int
    full_size: int
    declared: bool = True
    data: bool = False
    dim: int = -1


@dataclass(frozen=True)
class TimeAxis:
    """A time axis whose steps but the first were run at once.

    Args:
        plate: name of the plate that stands for these steps.
        size: number of steps T.
        history: steps that were run one by one first.
        first: for each site of the steps run at once, the name of the same site at step 0.
        token: the part of these sites' names that stands for the step.
    """

    plate: str
    size: int
    history: int
    first: Mapping[str, str]
    token: str

    def at(self, name: str, step: int) -> str:
        """Name of a site at a single step."""
        return name.replace(self.token, str(step))

    def family(self, name: str) -> str:
        """Name of the family of sites: without the step and what joins it."""
        return name.replace(self.token, "").rstrip("_[]-. ")


@dataclass(frozen=True)
class Latent:
    """An unobserved random variable.

    Args:
        name: site name.
        kind: ``"discrete"`` (summed) or ``"continuous"``.
        plates: names of the plates that it lives in, outermost first.
        parents: latents on which its own density depends.
        local: True if it lives in a data plate (its number grows with the data).
        support: (K, *event_shape) values of a discrete latent.
        event_shape: shape of one value, folded dimensions first.
        by_path: Python reads its value: it takes one value per run of the program.
        folded: number of batch dimensions whose elements are summed jointly, as one value (they depend on each other
            in a way that their plate does not show).
        optional: some execution paths do not reach its sample statement; the last row of its support, −1 or NaN, stands
            for that.
    """

    name: str
    kind: Literal["discrete", "continuous"]
    plates: tuple[str, ...]
    parents: tuple[str, ...] = ()
    local: bool = False
    support: Tensor | None = None
    event_shape: tuple[int, ...] = ()
    by_path: bool = False
    folded: int = 0
    optional: bool = False

    @property
    def cardinality(self) -> int:
        """Number of values of a discrete latent, "not reached" among them."""
        return 0 if self.support is None else self.support.shape[0]

    @property
    def values(self) -> Tensor:
        """(K, *event_shape) values that the sample statement can return."""
        assert self.support is not None
        return self.support[:-1] if self.optional else self.support


@dataclass(frozen=True)
class Parameter:
    """Something that the fit estimates: a ``pyro.param``, a module's weight, or a point-estimated global latent.

    Args:
        name: its name in ``FitResult.params`` (or ``point_estimates``).
        init: the program's own initial value, in constrained space.
        constraint: the support.
        origin: ``"param"``, ``"module"`` (an ``nn.Parameter``, trained in place) or ``"site"`` (a latent under a prior).
        frozen: held at its value.
        module_tensor: the ``nn.Parameter`` itself, for origin ``"module"``.
    """

    name: str
    init: Tensor
    constraint: constraints.Constraint
    origin: Literal["param", "module", "site"] = "param"
    frozen: bool = False
    module_tensor: Tensor | None = None


@dataclass(frozen=True)
class Link:
    """Elements of a distribution argument that are elements of one parameter, up to a bijection.

    The argument's element ``e`` is ``slope[e] * transform(parameter).flatten()[index[e]] + offset[e]`` where
    ``index[e] >= 0``; other elements do not come from this parameter.

    Args:
        parameter: its name.
        index: int64, shape of the argument's compact value; −1 where the parameter is absent.
        transform: a bijection applied to the whole parameter first (identity, exp, softmax over the last axis, …).
        slope, offset: affine part, shape of ``index``; None for slope one, offset zero.
    """

    parameter: str
    index: Tensor
    transform: Transform = IDENTITY
    slope: Tensor | None = None
    offset: Tensor | None = None


@dataclass(frozen=True)
class Argument:
    """One argument of a site's distribution.

    Args:
        value: compact value at the traced parameters (size 1 where it does not vary), with named batch dimensions.
        links: where its elements come from, if they are elements of parameters.
        design: its linear predictor, if it is one in parameters.
        sources: every parameter that feeds it (by provenance).
    """

    value: Factor
    links: tuple[Link, ...] = ()
    sources: frozenset[str] = frozenset()
    design: Design | None = None

    @property
    def opaque(self) -> bool:
        """Parameters feed it in a way that is not known: only a run of the program can evaluate it."""
        known = {link.parameter for link in self.links} | set(self.design.parameters if self.design else ())
        return bool(self.sources - known)

    def evaluate(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The argument's compact value at other parameters, without running the program."""
        if self.design is not None:
            cells_first = Factor(self.design.evaluate(parameters), self.design.cells + self.design.data)
            return cells_first.align(self.value.dims)
        if not self.links:
            return self.value.tensor
        result: Tensor | None = None
        for link in self.links:
            source = link.transform.forward(parameters[link.parameter]).reshape(-1)
            part = source[link.index.clamp_min(0)]
            if link.slope is not None and link.offset is not None:
                part = part * link.slope + link.offset
            here = link.index >= 0
            base = self.value.tensor.to(part.dtype) if result is None else result
            result = part if bool(here.all()) else torch.where(here, part, base)
        assert result is not None
        return result


@dataclass(frozen=True)
class Site:
    """A factor of the joint density.

    Args:
        name: site name; a stack of like sites along a time axis has the name of its first member.
        role: ``"latent"``, ``"observed"`` or ``"factor"``.
        scope: latents on which the density depends, a latent site's own included.
        plates: plates that it lives in.
        dims: names of the log-factor's dimensions, scope and plates.
        inner: names of dimensions that are summed inside the site (``.to_event`` and undeclared batch dimensions).
        family: the distribution's class, wrappers peeled off (None for ``pyro.factor``).
        arguments: by name, in the family's own parametrisation.
        value: what the density is evaluated at; for a latent its support along its own dimension.
        mask: where False the site does not count (never applied to a summed latent's own density).
        scale: multiplies the log-density of the site's connected component.
        parameters: parameters that feed it in any way.
        lowered: the density can be evaluated from links alone, without a run of the program.
        members: names of the sites that a stack holds, in time order.
        options: constructor arguments of the family that are not tensors.
        point: the latent whose value is given among the parameters and scored by this site (the prior of a point
            estimate, the density of a sampled latent), or None.
        missing: True where an element of the observed value is missing (the mask, or the family, leaves it out); None
            where all are observed, and in stacks.
    """

    name: str
    role: Literal["latent", "observed", "factor"]
    scope: tuple[str, ...]
    plates: tuple[str, ...]
    dims: tuple[str, ...]
    inner: tuple[str, ...]
    family: type | None
    arguments: Mapping[str, Argument]
    value: Factor
    mask: Factor | None = None
    scale: Factor | None = None
    parameters: frozenset[str] = frozenset()
    lowered: bool = False
    members: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    point: str | None = None
    missing: Factor | None = None

    def distribution(self, parameters: Mapping[str, Tensor]) -> Any:
        """The site's distribution at given parameters, batch dimensions in the order of ``dims + inner``."""
        assert self.family is not None
        order = self.dims + self.inner
        arguments = {
            name: Factor(a.evaluate(parameters), a.value.dims).align(order) for name, a in self.arguments.items()
        }
        return self.family(**arguments, **self.options, validate_args=False)

    def log_factor(self, parameters: Mapping[str, Tensor]) -> Factor:
        """Log-density by name, from links alone (only for lowered sites); mask applied, scale not."""
        order = self.dims + self.inner
        value = self.value
        if self.point is not None:
            value = Factor(parameters[self.point].reshape(value.tensor.shape), value.dims)
        log_prob = self.distribution(parameters).log_prob(value.align(order))
        return self.finish(Factor(log_prob.reshape(_padded(log_prob.shape, len(order))), order))

    def finish(self, log_prob: Factor) -> Factor:
        """Apply the mask, sum the inner dimensions of an elementwise log-density, drop dimensions of size 1."""
        if self.mask is not None:
            order = log_prob.dims + tuple(d for d in self.mask.dims if d not in log_prob.dims)
            keep = self.mask.align(order)
            log_prob = Factor(torch.where(keep, log_prob.align(order), 0.0), order)
        return log_prob.sum(self.inner).squeeze()


def _padded(shape: torch.Size, length: int) -> tuple[int, ...]:
    return (1,) * (length - len(shape)) + tuple(shape)


@dataclass(frozen=True)
class Program:
    """A traced program.

    Args:
        sites, latents, plates, parameters: by name, in program order.
        evaluate: runs the program at given parameters with its latents enumerated; log-factor of each site asked for.
        notes: things to be said in the plan (warnings met while tracing).
        unproven: reasons why nothing about this program can be called exact.
        witnesses: evidence for the exactness claim, by name.
        data_plate: the outermost plate around all observations, None where there is none.
        axes: time axes that were run in a few steps.
        runner: the enumerated program itself (:class:`ppl_em.trace.enumeration.Enumeration`), to run it on other data.
        refused: discrete latents that cannot be summed, and why.
    """

    sites: Mapping[str, Site]
    latents: Mapping[str, Latent]
    plates: Mapping[str, Plate]
    parameters: Mapping[str, Parameter]
    evaluate: Callable[[Mapping[str, Tensor], tuple[str, ...]], dict[str, Factor]]
    notes: tuple[str, ...] = ()
    unproven: tuple[str, ...] = ()
    witnesses: Mapping[str, str] = field(default_factory=dict)
    data_plate: str | None = None
    axes: tuple[TimeAxis, ...] = ()
    runner: Any = None
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def summed(self) -> dict[str, Latent]:
        """Discrete latents that are summed."""
        return {z: v for z, v in self.latents.items() if v.kind == "discrete" and z not in self.refused}

    def leaves(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Differentiable leaves that hold given parameter values.

        A module's weight is its own ``nn.Parameter`` (its data is overwritten: modules are trained in place), any
        other parameter a fresh leaf in constrained space.
        """
        leaves: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            value = values[name].detach()
            if parameter.module_tensor is not None:
                with torch.no_grad():
                    if parameter.module_tensor.data_ptr() != value.data_ptr():
                        parameter.module_tensor.copy_(value)
                leaves[name] = parameter.module_tensor
            else:
                leaves[name] = value.clone().requires_grad_(True)
        return leaves

    def factors(self, parameters: Mapping[str, Tensor], names: tuple[str, ...] | None = None) -> dict[str, Factor]:
        """Log-factor of each site, scale not applied; sites that are links alone cost no run of the program."""
        names = tuple(self.sites) if names is None else names
        result = {n: self.sites[n].log_factor(parameters) for n in names if self.sites[n].lowered}
        others = tuple(n for n in names if n not in result)
        if others:
            result.update(self.evaluate(parameters, others))
        return result

    def sizes(self) -> dict[str, int]:
        """Size of every named dimension: cardinalities of discrete latents and sizes of plates."""
        sizes = {name: latent.cardinality for name, latent in self.summed.items()}
        sizes.update({name: plate.size for name, plate in self.plates.items()})
        return sizes
