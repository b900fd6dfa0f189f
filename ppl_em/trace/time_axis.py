"""A time axis that is traced in a few steps: the loop's body runs for the first steps and once for all others.

Reference:
    Obermeyer, F. et al. (2019). Functional tensors for probabilistic programming. arXiv:1910.10775. Section 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from torch import Tensor

from ppl_em.errors import NotVectorised, message

_MODES: list[TimeMode] = []
#: How often steps were run at once: tells whether a failure may be due to it.
USED = [0]


@dataclass
class Axis:
    """A time axis as a run met it.

    Args:
        plate: name of the plate that stands for the steps run at once.
        size: number of steps T.
        history: steps that were run one by one first.
        dim: batch dimension of the plate.
        token: what the loop variable of the steps run at once looks like in site names.
    """

    plate: str
    size: int
    history: int
    dim: int
    token: str


@dataclass
class TimeMode:
    """How time loops run inside a traced run.

    Args:
        records: the sites recorded so far (their plates tell which dimensions are taken).
        kind: ``"vector"`` (first steps, then all others at once), or the steps to run, one by one.
        axes: the axes that were met.
    """

    records: dict[str, Any]
    kind: str | tuple[int, ...] = "vector"
    axes: list[Axis] = field(default_factory=list)


@contextmanager
def time_mode(mode: TimeMode | None) -> Iterator[None]:
    """Loops over :func:`markov` follow ``mode`` inside; None lets them run step by step."""
    if mode is None:
        yield
        return
    _MODES.append(mode)
    try:
        yield
    finally:
        _MODES.remove(mode)


def markov(size: int, history: int = 1) -> Iterator[Any]:
    """A time axis for long chains: the loop's body is traced for the first steps and once for all others.

    Use it as ``pyro.markov(range(size))``. The loop variable is an int for the first ``history`` steps and then, while
    ``ppl_em`` traces the program, one tensor of all other steps: ``x[t]``, ``x[:, t]``, ``x[t - 1]``, ``lengths > t`` and
    ``t == 0`` work with both. The body may hand nothing but its latents on to the next step. Outside ``fit`` this is
    ``pyro.markov(range(size))``, and where the body cannot be run for all steps at once, ``fit`` runs it step by step.

    Args:
        size: number of steps T.
        history: how many steps back the body looks.

    Yields:
        The step.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, ppl_em
        >>> def hmm(x):
        ...     rate = pyro.param("rate", torch.tensor([1.0, 9.0]), constraint=dist.constraints.positive)
        ...     stay = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
        ...     z = 0
        ...     for t in ppl_em.markov(len(x)):
        ...         z = pyro.sample(f"z_{t}", dist.Categorical(stay[z]))
        ...         pyro.sample(f"x_{t}", dist.Poisson(rate[z]), obs=x[t])
        >>> ppl_em.explain(hmm, torch.ones(5000)).engine_of("z")
        'chain'
    """
    size = int(size)
    mode = _MODES[-1] if _MODES else None
    if mode is None or (mode.kind == "vector" and size <= history + 2):
        yield from pyro.markov(range(size), history=history)
        return
    if isinstance(mode.kind, tuple):
        yield from (step for step in mode.kind if step < size)
        return
    before = set(mode.records)
    yield from range(history)
    inside = [r for n, r in mode.records.items() if n not in before]
    depth = max((-f.dim for r in inside for f in r.frames if f.dim is not None), default=0)
    USED[0] += 1
    axis = Axis(f"_time_{len(mode.axes)}", size, history, -1 - depth, f"{history}:{size}")
    mode.axes.append(axis)
    with pyro.plate(axis.plate, size - history, dim=axis.dim):
        yield Steps.make(torch.arange(history, size), depth, axis.token)


class Steps(Tensor):
    """Many time steps at once, in the place of a loop variable.

    As an index it is one-dimensional, and what is indexed by it has time as its first dimension; in arithmetic and
    comparisons it broadcasts with time left of the plates.
    """

    depth: int
    token: str

    @classmethod
    def make(cls, steps: Tensor, depth: int, token: str) -> Steps:
        """Wrap int64 steps (S,)."""
        self = steps.as_subclass(cls)
        self.depth, self.token = depth, token
        return self

    def _plain(self) -> Tensor:
        return self.as_subclass(Tensor)

    def _wide(self) -> Tensor:
        return self._plain().reshape(-1, *(1 for _ in range(self.depth)))

    def __format__(self, spec: str) -> str:
        return self.token

    def __str__(self) -> str:
        return self.token

    def __index__(self) -> int:
        raise NotVectorised(message("Python needs the number of a single time step", hint="indexing tensors by it"))

    __int__ = __index__

    def __hash__(self) -> int:
        return id(self)

    def __add__(self, other: Any) -> Any:
        return self._shift(other, 1) if isinstance(other, int) else self._wide() + _widened(other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        return self._shift(other, -1) if isinstance(other, int) else self._wide() - _widened(other)

    def _shift(self, other: int, sign: int) -> Steps:
        return Steps.make(self._plain() + sign * other, self.depth, f"{self.token}{'+' if sign > 0 else '-'}{other}")

    def __mod__(self, other: Any) -> Any:
        if isinstance(other, int):
            return Steps.make(self._plain() % other, self.depth, f"{self.token}%{other}")
        return self._wide() % _widened(other)

    def __floordiv__(self, other: Any) -> Any:
        if isinstance(other, int):
            return Steps.make(self._plain() // other, self.depth, f"{self.token}//{other}")
        return self._wide() // _widened(other)

    def _compare(self, name: str, other: Any) -> Any:
        result = getattr(self._wide(), name)(_widened(other))
        if isinstance(other, int) and bool((result == result.reshape(-1)[0]).all()):
            return bool(result.reshape(-1)[0])  # ``if t == 0`` is the same for all these steps
        return result

    def __eq__(self, other: Any) -> Any:
        return self._compare("__eq__", other)

    def __ne__(self, other: Any) -> Any:
        return self._compare("__ne__", other)

    def __lt__(self, other: Any) -> Any:
        return self._compare("__lt__", other)

    def __le__(self, other: Any) -> Any:
        return self._compare("__le__", other)

    def __gt__(self, other: Any) -> Any:
        return self._compare("__gt__", other)

    def __ge__(self, other: Any) -> Any:
        return self._compare("__ge__", other)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.__getitem__ and not isinstance(args[0], Steps):
            return _indexed(args[0], args[1])
        if func in (Tensor.as_subclass, Tensor.reshape, Tensor.__repr__) or getattr(func, "__name__", "") == "__get__":
            return super().__torch_function__(func, types, args, kwargs)
        plain = [_widened(a) if isinstance(a, Steps) else a for a in args]
        return func(*plain, **{k: _widened(v) for k, v in kwargs.items()})


def _widened(value: Any) -> Any:
    return value._wide() if isinstance(value, Steps) else value


def _indexed(tensor: Tensor, index: Any) -> Tensor:
    """``tensor[index]`` at each step, stacked along a new first dimension (left of the plates)."""
    parts = index if isinstance(index, tuple) else (index,)
    steps = [p for p in parts if isinstance(p, Steps)]
    if len(steps) != 1 or any(isinstance(p, Tensor) and not isinstance(p, Steps) for p in parts):
        raise NotVectorised(
            message("an index mixes the time step with other tensors", hint="x[t] first, then the other index")
        )
    if any(p is Ellipsis for p in parts):
        at = next(i for i, p in enumerate(parts) if p is Ellipsis)
        spanned = tensor.dim() - sum(p is not None for p in parts) + 1
        parts = (*parts[:at], *(slice(None) for _ in range(spanned)), *parts[at + 1 :])
    plain = steps[0]._plain()
    low, high = int(plain.min()), int(plain.max())
    place = next(i for i, p in enumerate(parts) if p is steps[0])
    before = 0
    for p in parts[:place]:
        before += 0 if p is None else 1
    size = tensor.shape[before]
    if high >= size or low < -size:
        raise IndexError(f"time step {high if high >= size else low} is out of range for a dimension of size {size}")
    stacked = tensor.movedim(before, 0).index_select(0, plain % size)
    rest = tuple(p for i, p in enumerate(parts) if i != place)
    value = stacked[(slice(None), *rest)] if rest else stacked
    missing = steps[0].depth - (value.dim() - 1)
    return value.reshape(value.shape[0], *(1 for _ in range(missing)), *value.shape[1:]) if missing > 0 else value
