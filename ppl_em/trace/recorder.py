"""The outermost handler of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.distribution import Distribution
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints

from ppl_em.distributions.partly_observed import without_gaps
from ppl_em.errors import ModelError, message
from ppl_em.trace.draw import draw
from ppl_em.trace.footprint import GIVEN
from ppl_em.trace.missing import Seen, seen_part
from ppl_em.trace.one_value import one_value
from ppl_em.trace.partly_labelled import MARK
from ppl_em.trace.peel import peel
from ppl_em.trace.provenance import Provenance, tensors_in
from ppl_em.trace.record import Frame, ParameterSeen, Record, version_of


class Recorder(Messenger):
    """The outermost handler of a run: assigns latents, substitutes parameters, records every site."""

    def __init__(
        self,
        assign: Callable[[str, Any], Tensor | None],
        parameters: Mapping[str, Tensor],
        provenance: Provenance | None,
        unobserve: bool = False,
        compact: bool = False,
    ) -> None:
        super().__init__()
        self.compact = compact
        self.assign, self.parameters, self.provenance = assign, parameters, provenance
        self.records: dict[str, Record] = {}
        self.seen: dict[str, ParameterSeen] = {}
        self.unobserve = unobserve
        self._plate_sizes: dict[str, int] = {}

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
            _place(init, self.parameters.get(name))
            msg["value"], msg["done"] = init, True
        elif isinstance(init, Tensor) and not init.is_floating_point():
            raise ModelError(
                message("a parameter must be a floating-point tensor", site=name, value=init.dtype, hint="adding .0")
            )
        elif isinstance(init, Tensor):
            # Pyro makes the very tensor that it is given require gradients, where the constraint lets it.
            msg["args"] = (msg["args"][0], init.detach().clone(), *msg["args"][2:])

    def _pyro_post_param(self, msg: Any) -> None:
        name, value = msg["name"], msg["value"]
        init = msg["args"][1] if len(msg["args"]) > 1 else None
        if name not in self.seen:
            store = pyro.get_param_store()
            constraint = msg["kwargs"].get("constraint", constraints.real)
            constraint = store._constraints.get(name, constraint)
            whole = getattr(value, "_pyro_unconstrained_param", None)
            full = self.parameters.get(name, store[name] if name in store and whole is None else value)
            module = isinstance(init, torch.nn.Parameter)
            self.seen[name] = ParameterSeen(init if module else full, constraint, module)
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
                message(
                    "two sample statements have the same name", site=name, hint='a name of its own each, e.g. f"z_{t}"'
                )
            )
        if not isinstance(fn, Distribution):
            raise ModelError(message("not a distribution", site=name, value=type(fn).__name__))
        if isinstance(fn, dist.Delta) and not msg["is_observed"]:
            msg["value"], msg["is_observed"] = fn.v, True
        drawn: Tensor | None = None
        if not msg["is_observed"]:
            drawn = self._latent(msg, name, fn)
        elif self.unobserve and not isinstance(fn, (dist.Unit, dist.Delta)):
            replacement = self.assign(name, fn)
            if replacement is not None:
                msg["value"] = replacement
        self._record(msg, name, fn, drawn)

    def _latent(self, msg: Any, name: str, fn: Any) -> Tensor:
        """Assign or draw a latent; the program gets a copy, so that its writes do not reach the record."""
        try:
            value = self.assign(name, fn)
            if value is None and self.compact:
                value = one_value(fn, msg["cond_indep_stack"])
            if value is None:
                if self.provenance is not None:
                    with self.provenance.inside_sample():
                        value = draw(fn)
                else:
                    value = draw(fn)
        except NotImplementedError as error:
            raise ModelError(
                message("the distribution cannot be sampled", site=name, value=type(fn).__name__, why=str(error))
            ) from error
        discrete = not value.is_floating_point() or not value.requires_grad
        if self.provenance is not None:
            with torch._C.DisableTorchFunction():  # a draw does not carry its distribution's marks
                copy = value.detach().clone()
            self.provenance.mark(copy, {f"latent:{name}"})
        else:
            copy = value.clone() if discrete else value
        msg["value"], msg["done"] = copy, True
        return value

    def _frames(self, msg: Any) -> tuple[Frame, ...]:
        frames = []
        for f in msg["cond_indep_stack"]:
            first = self._plate_sizes.setdefault(f.name, f.size)
            # One name for plates of several sizes: they are different plates.
            name = f.name if first == f.size or f.dim is None else f"{f.name}[{f.size}]"
            frames.append(Frame(name, f.dim, f.size, f.full_size or f.size))
        return tuple(frames)

    def _record(self, msg: Any, name: str, fn: Any, drawn: Tensor | None) -> None:
        frames = self._frames(msg)
        role = "factor" if isinstance(fn, (dist.Unit, dist.Delta)) else ("observed" if msg["is_observed"] else "latent")
        given = msg["infer"].pop(GIVEN, fn) if msg["infer"] else fn
        mask, scale = msg["mask"], msg["scale"]
        value = msg["value"] if drawn is None else drawn
        seen = seen_part(name, fn, value, mask, given) if role == "observed" else Seen(fn, value)
        fn, value = seen.fn, seen.value
        peeled = None if role == "factor" else peel(fn, given)
        if not isinstance(value, Tensor):
            value = torch.as_tensor(value)
        infer = msg["infer"] or {}
        record = Record(
            name,
            role,
            fn,
            peeled,
            value,
            frames,
            mask.clone() if isinstance(mask, Tensor) else mask,
            scale.clone() if isinstance(scale, Tensor) else float(scale),
            version=version_of(value, peeled),
            infer=dict(infer),
            steps=tuple((f.name, f.counter) for f in msg["cond_indep_stack"] if f.dim is None),
            markov=(infer.get("_markov_depth", 0), dict(infer.get("_markov_scope", {}))),
            hidden=seen.hidden,
        )
        if self.provenance is not None:
            self._trace_marks(record, msg)
            if seen.hidden is not None:
                msg["value"] = self._followed(name, value, fn)
        self.records[name] = record

    def _followed(self, name: str, value: Tensor, fn: Any) -> Tensor:
        """What the program gets in place of a value with holes: numbers that it can compute with, and that are known."""
        assert self.provenance is not None
        with torch._C.DisableTorchFunction():
            copy = without_gaps(value.detach()).clone()
        self.provenance.mark(copy, {f"{MARK}{name}"})
        return copy

    def _trace_marks(self, record: Record, msg: Any) -> None:
        follow = self.provenance
        assert follow is not None
        own = f"latent:{record.name}" if record.role == "latent" else None
        record.control = frozenset(follow.escaped)
        reached = frozenset(m for m in record.control if m.startswith("param:"))
        record.value_marks = follow.carried(record.value) - {own}
        pieces = [distribution_tensors(record.fn), record.mask, msg["mask"], record.scale, msg["scale"]]
        record.marks = (follow.carried(pieces) | record.value_marks | reached) - {own}
        if record.peeled is not None:
            record.argument_marks = {n: follow.carried(t) | reached for n, t in record.peeled.arguments.items()}


def _place(weight: torch.nn.Parameter, value: Tensor | None) -> None:
    """Give a module's weight the value at which the program is to be run (modules are trained in place)."""
    if value is None or value is weight or value.data_ptr() == weight.data_ptr():
        return
    with torch.no_grad():
        if not torch.equal(weight, value):
            weight.copy_(value)


def distribution_tensors(fn: Any, depth: int = 0) -> list[Tensor]:
    """All tensors that a distribution holds, nested distributions and transforms included."""
    if depth > 6 or not hasattr(fn, "__dict__"):
        return []
    found: list[Tensor] = []
    for value in fn.__dict__.values():
        found += list(tensors_in(value))
        members = value if isinstance(value, (list, tuple)) else [value]
        for member in members:
            if isinstance(member, (torch.distributions.Distribution, torch.distributions.Transform)):
                found += distribution_tensors(member, depth + 1)
    return found
