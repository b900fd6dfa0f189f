"""What a run of a program saw: sample statements, parameters, and the run as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_em.errors import ModelError, message
from ppl_em.ir.shapes import broadcast_shapes
from ppl_em.trace.peel import Peeled
from ppl_em.trace.provenance import Provenance
from ppl_em.trace.time_axis import Axis


@dataclass
class Frame:
    """A plate around a site: its name, dimension (None for a sequential plate), size and full size."""

    name: str
    dim: int | None
    size: int
    full_size: int


@dataclass
class Record:
    """What a run saw at one sample statement.

    Args:
        name, role, fn: the site's name, ``"latent"``, ``"observed"`` or ``"factor"``, and its distribution.
        peeled: the distribution without its wrappers; None for a factor, and where execution paths differ in it.
        value: what the site returned, as it stood at the statement.
        frames: plates around it.
        mask, scale: of the handlers around it, as they stood at the statement.
        marks: what its density was computed from (``latent:z``, ``param:w``, ``random:rand``), through tensors.
        argument_marks, value_marks: the same by argument, and for the value.
        control: what had reached Python before it: control flow may depend on that.
        version: of the memory of the value and the arguments, to notice later writes.
        infer: the site's ``infer`` dictionary.
        steps: (name, counter) of the sequential plates around it.
        markov: depth of ``pyro.markov`` contexts around it, and the depths of the sites visible in them.
        elementwise: log-density, where it was put together from several execution paths.
        reinterpreted: number of batch dimensions that ``.to_event`` made part of the event, where ``peeled`` is None.
        hidden: True where an element of an observed value is missing (NaN), shaped as the value; None where none is.
    """

    name: str
    role: str
    fn: Any
    peeled: Peeled | None
    value: Tensor
    frames: tuple[Frame, ...]
    mask: Tensor | bool | None
    scale: Tensor | float
    marks: frozenset[str] = frozenset()
    argument_marks: dict[str, frozenset[str]] = field(default_factory=dict)
    value_marks: frozenset[str] = frozenset()
    control: frozenset[str] = frozenset()
    version: int = 0
    infer: dict[str, Any] = field(default_factory=dict)
    steps: tuple[tuple[str, int], ...] = ()
    markov: tuple[int, Mapping[str, int]] = (0, {})
    elementwise: Tensor | None = None
    reinterpreted: int = 0
    hidden: Tensor | None = None

    @property
    def inner(self) -> int:
        """Number of rightmost batch dimensions that ``.to_event`` made part of the event."""
        return self.reinterpreted if self.peeled is None else self.peeled.inner

    @property
    def full_value(self) -> Tensor:
        """The value in the shape of a draw, where one value stands for all elements of a plate."""
        shape = tuple(self.fn.batch_shape) + tuple(self.fn.event_shape)
        return self.value.expand(broadcast_shapes(self.value.shape, shape))

    def log_prob(self) -> Tensor:
        """Elementwise log-density, shape broadcastable to the batch shape; mask and scale not applied."""
        if self.elementwise is not None:
            return self.elementwise
        if version_of(self.value, self.peeled) != self.version:
            raise ModelError(
                message(
                    "the value or an argument of the distribution was changed in place after the sample statement",
                    site=self.name,
                    hint="passing a copy (value.clone()) to pyro.sample",
                )
            )
        if self.peeled is None:
            return self.fn.log_prob(self.value)
        if bound_of(self.peeled.base) is not None:
            return _bounded_log_prob(self.peeled.base, self.value)
        return self.peeled.base.log_prob(self.value)

    def independent_of(self, other: Record) -> bool:
        """Whether the program declares that control flow in ``other``'s context cannot reach this site.

        Different turns of one sequential plate are independent; what has left the history of ``pyro.markov`` is not
        visible.
        """
        mine, theirs = dict(self.steps), dict(other.steps)
        if any(mine[p] != theirs[p] for p in mine.keys() & theirs.keys()):
            return True
        depth = other.markov[0]
        return depth > 0 and self.markov[1].get(other.name, 0) != depth


def version_of(value: Tensor, peeled: Peeled | None) -> int:
    """Number of in-place writes to the memory of a value and of a distribution's arguments."""
    return value._version + (0 if peeled is None else sum(t._version for t in peeled.arguments.values()))


def bound_of(base: Any) -> Tensor | None:
    """Largest value of each element of a count, where the family bounds it by an argument."""
    return base.total_count if isinstance(base, (dist.Binomial, dist.BetaBinomial)) else None


def _bounded_log_prob(base: Any, value: Tensor) -> Tensor:
    """Log-density of counts, −inf above each element's own total (the totals may differ)."""
    inside = (value >= 0) & (value <= base.total_count)
    log_prob = base.log_prob(torch.where(inside, value, torch.zeros_like(value)))
    return torch.where(inside, log_prob, torch.full_like(log_prob, -torch.inf))


@dataclass
class ParameterSeen:
    """What a run saw at one ``pyro.param`` statement."""

    value: Tensor
    constraint: Any
    module: bool


@dataclass
class Run:
    """Outcome of one run; ``declared`` holds the subsample sizes that plates declare, ``axes`` the time axes met."""

    records: dict[str, Record]
    parameters: dict[str, ParameterSeen]
    provenance: Provenance | None
    returned: Any = None
    declared: dict[str, int] = field(default_factory=dict)
    axes: tuple[Axis, ...] = ()
