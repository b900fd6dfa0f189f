"""One run of a program: every site recorded, latents and parameters given or drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.distribution import Distribution
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_em.errors import ModelError, PplEmError, message
from ppl_em.trace.footprint import full_plates
from ppl_em.trace.peel import Peeled, peel
from ppl_em.trace.provenance import Provenance, tensors_in


@dataclass
class Frame:
    """A plate around a site: its name, dimension (None for a sequential plate), size and full size."""

    name: str
    dim: int | None
    size: int
    full_size: int


@dataclass
class Record:
    """What a run saw at one sample statement."""

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
    version: int = 0
    infer: dict[str, Any] = field(default_factory=dict)

    def log_prob(self) -> Tensor:
        """Elementwise log-density, shape broadcastable to the batch shape; mask and scale not applied."""
        if self.value._version != self.version:
            raise ModelError(
                message(
                    "the value was changed in place after its sample statement",
                    site=self.name,
                    hint="passing a copy (value.clone()) to pyro.sample",
                )
            )
        if self.peeled is None:
            return self.fn.log_prob(self.value)
        return self.peeled.base.log_prob(self.value)


@dataclass
class ParameterSeen:
    """What a run saw at one ``pyro.param`` statement."""

    value: Tensor
    constraint: Any
    module: bool


@dataclass
class Run:
    """Outcome of one run; ``declared`` holds the subsample sizes that plates declare."""

    records: dict[str, Record]
    parameters: dict[str, ParameterSeen]
    provenance: Provenance | None
    returned: Any = None
    declared: dict[str, int] = field(default_factory=dict)


class Recorder(Messenger):
    """The outermost handler of a run: assigns latents, substitutes parameters, records every site."""

    def __init__(
        self,
        assign: Callable[[str, Any], Tensor | None],
        parameters: Mapping[str, Tensor],
        provenance: Provenance | None,
        unobserve: bool = False,
    ) -> None:
        super().__init__()
        self.assign, self.parameters, self.provenance = assign, parameters, provenance
        self.records: dict[str, Record] = {}
        self.seen: dict[str, ParameterSeen] = {}
        self.unobserve = unobserve

    def _pyro_param(self, msg: Any) -> None:
        name = msg["name"]
        init = msg["args"][1] if len(msg["args"]) > 1 else None
        module = isinstance(init, torch.nn.Parameter)
        if name in self.parameters and not module:
            value = self.parameters[name]
            if not hasattr(value, "_pyro_unconstrained_param"):
                value._pyro_unconstrained_param = value  # type: ignore[attr-defined]
            msg["value"], msg["done"] = value, True
        elif module:
            msg["value"], msg["done"] = init, True
        elif isinstance(init, Tensor) and not init.is_floating_point():
            raise ModelError(
                message("a parameter must be a floating-point tensor", site=name, value=init.dtype, hint="adding .0")
            )

    def _pyro_post_param(self, msg: Any) -> None:
        name, value = msg["name"], msg["value"]
        init = msg["args"][1] if len(msg["args"]) > 1 else None
        if name not in self.seen:
            store = pyro.get_param_store()
            constraint = msg["kwargs"].get("constraint", torch.distributions.constraints.real)
            constraint = store._constraints.get(name, constraint)
            whole = getattr(value, "_pyro_unconstrained_param", None)
            full = self.parameters.get(name, store[name] if name in store and whole is None else value)
            self.seen[name] = ParameterSeen(full, constraint, isinstance(init, torch.nn.Parameter))
        if self.provenance is not None:
            self.provenance.reset(value, {f"param:{name}"})

    def _pyro_sample(self, msg: Any) -> None:
        fn, name = msg["fn"], msg["name"]
        if type(fn).__name__ == "_Subsample" or msg["infer"].get("_do_not_trace"):
            return
        if msg["infer"].get("_deterministic"):
            return
        if name in self.records:
            raise ModelError(
                message("two sample statements have the same name", site=name, hint='a name of its own each, e.g. f"z_{t}"')
            )
        if not isinstance(fn, Distribution):
            raise ModelError(message("not a distribution", site=name, value=type(fn).__name__))
        if isinstance(fn, dist.Delta) and not msg["is_observed"]:
            msg["value"], msg["is_observed"] = fn.v, True
        if not msg["is_observed"]:
            self._latent(msg, name, fn)
        elif self.unobserve and not isinstance(fn, (dist.Unit, dist.Delta)):
            drawn = self.assign(name, fn)
            if drawn is not None:
                msg["value"] = drawn
        self._record(msg, name, fn)

    def _latent(self, msg: Any, name: str, fn: Any) -> None:
        try:
            value = self.assign(name, fn)
            if value is None:
                if self.provenance is not None:
                    with self.provenance.inside_sample():
                        value = fn.sample()
                else:
                    value = fn.sample()
        except NotImplementedError as error:
            raise ModelError(
                message("the distribution cannot be sampled", site=name, value=type(fn).__name__, why=str(error))
            ) from error
        if self.provenance is not None:
            with torch._C.DisableTorchFunction():  # a draw does not carry its distribution's marks
                value = value.detach().clone()
            self.provenance.mark(value, {f"latent:{name}"})
        msg["value"], msg["done"] = value, True

    def _record(self, msg: Any, name: str, fn: Any) -> None:
        frames = tuple(Frame(f.name, f.dim, f.size, f.full_size or f.size) for f in msg["cond_indep_stack"])
        role = "factor" if isinstance(fn, (dist.Unit, dist.Delta)) else ("observed" if msg["is_observed"] else "latent")
        peeled = None if role == "factor" else peel(fn)
        mask, scale = msg["mask"], msg["scale"]
        value = msg["value"]
        if not isinstance(value, Tensor):
            value = torch.as_tensor(value)
        record = Record(
            name,
            role,
            fn,
            peeled,
            value,
            frames,
            mask.clone() if isinstance(mask, Tensor) else mask,
            scale.clone() if isinstance(scale, Tensor) else float(scale),
            version=value._version,
            infer=dict(msg["infer"] or {}),
        )
        if self.provenance is not None:
            self._trace_marks(record, msg)
        self.records[name] = record

    def _trace_marks(self, record: Record, msg: Any) -> None:
        follow = self.provenance
        assert follow is not None
        own = f"latent:{record.name}" if record.role == "latent" else None
        record.value_marks = follow.marks(record.value) - {own}
        pieces = [_distribution_tensors(record.fn), record.mask, msg["mask"], record.scale, msg["scale"]]
        record.marks = (follow.marks(pieces) | record.value_marks) - {own}
        if record.peeled is not None:
            record.argument_marks = {n: follow.marks(t) for n, t in record.peeled.arguments.items()}


def _distribution_tensors(fn: Any, depth: int = 0) -> list[Tensor]:
    """All tensors that a distribution holds, nested distributions and transforms included."""
    if depth > 6 or not hasattr(fn, "__dict__"):
        return []
    found: list[Tensor] = []
    for value in fn.__dict__.values():
        found += list(tensors_in(value))
        members = value if isinstance(value, (list, tuple)) else [value]
        for member in members:
            if isinstance(member, (torch.distributions.Distribution, torch.distributions.Transform)):
                found += _distribution_tensors(member, depth + 1)
    return found


def run_program(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    assign: Callable[[str, Any], Tensor | None] | None = None,
    parameters: Mapping[str, Tensor] | None = None,
    follow: bool = False,
    unobserve: bool = False,
    keep_subsamples: bool = False,
) -> Run:
    """Run a program once and record it.

    Args:
        model, args, kwargs: the program and its arguments.
        assign: value of a latent by name and distribution; None lets it be drawn from its distribution.
        parameters: constrained values by name; parameters not named take the program's initial values.
        follow: follow provenance (slower).
        unobserve: ``assign`` may also replace observed values (they are to be predicted).
        keep_subsamples: a declared subsample size is that of the arguments (a batch of a loader).

    Raises:
        ModelError: the program fails, or uses a construct that cannot be read.
    """
    provenance = Provenance() if follow else None
    declared: dict[str, int] = {}
    recorder = Recorder(assign or (lambda name, fn: None), parameters or {}, provenance, unobserve)
    with ExitStack() as stack:
        stack.enter_context(full_plates(keep=keep_subsamples, declared=declared))
        stack.enter_context(recorder)
        if provenance is not None:
            stack.enter_context(provenance)
        try:
            returned = model(*args, **kwargs)
        except PplEmError:
            raise
        except TypeError as error:
            if "positional argument" in str(error) or "unexpected keyword" in str(error):
                raise ModelError(
                    message("the model cannot be called with these arguments", why=str(error), hint="fit(model, *args)")
                ) from error
            raise
    return Run(recorder.records, recorder.seen, provenance, returned, declared)
