"""Which latents and parameters a tensor was computed from, followed through every torch operation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

#: Calls by which a tensor's value leaves torch for Python: what runs afterwards may depend on it in any way.
_ESCAPES = frozenset(
    {
        "__bool__",
        "__float__",
        "__int__",
        "__index__",
        "item",
        "tolist",
        "numpy",
        "__array__",
        "__contains__",
        "is_nonzero",
    }
)
#: Randomness outside sample statements (batch normalisation: a result that depends on the other data of the batch).
_RANDOM = frozenset(
    {"rand", "randn", "randint", "rand_like", "randn_like", "randperm", "bernoulli", "bernoulli_", "normal", "normal_",
     "uniform_", "multinomial", "poisson", "dropout", "alpha_dropout", "feature_dropout", "exponential_", "randint_like",
     "random_", "geometric_", "cauchy_", "log_normal_", "rrelu", "batch_norm"}
)  # fmt: skip

#: Functions of many tensors each of whose outputs comes from one input only.
_SEPARATE = frozenset({"broadcast_tensors", "meshgrid", "atleast_1d", "atleast_2d", "atleast_3d"})
#: Methods whose other tensors give a type only.
_TYPED = frozenset({"type_as"})
#: Names that look like in-place writes but change no value.
_NO_WRITE = frozenset({"requires_grad_", "detach_", "share_memory_", "squeeze_", "unsqueeze_", "t_", "transpose_"})
_NONE: frozenset[str] = frozenset()


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)


class Provenance(TorchFunctionMode):
    """Follows marks from tensors to everything computed from them, views and in-place writes included.

    Marks belong to tensors; those of in-place writes belong to the memory, so that a write through a view is seen by
    all that share it. A value that leaves for
    Python (``if z > 0``, ``float(z)``, ``z.item()``) marks everything after it: that is control-flow dependence, which
    tensor-level analysis cannot see through.

    What random functions return outside sample statements is marked too (``random:randn``).

    Attributes:
        escaped: marks whose values reached Python, and by which call.
    """

    def __init__(self) -> None:
        super().__init__()
        self._marks: dict[int, frozenset[str]] = {}  # by tensor
        self._written: dict[int, frozenset[str]] = {}  # by storage
        self._alive: list[Any] = []  # marked things are kept, so that their addresses are not used again
        self.escaped: dict[str, str] = {}
        self.sampling = False

    def marks(self, value: Any) -> frozenset[str]:
        """Marks of all tensors in a nested value, escaped ones included."""
        return self.carried(value) | frozenset(self.escaped)

    def carried(self, value: Any) -> frozenset[str]:
        """Marks that the tensors in a nested value carry, escaped ones left out."""
        found: set[str] = set()
        for tensor in tensors_in(value):
            found |= self._of(tensor)
        return frozenset(found)

    def reset(self, tensor: Tensor, marks: Iterable[str]) -> None:
        """Replace a tensor's marks: what it was computed from does not matter any more."""
        self._marks[id(tensor)] = frozenset(marks)
        self._alive.append(tensor)

    def _of(self, tensor: Tensor) -> frozenset[str]:
        marks = self._marks.get(id(tensor), _NONE)
        return marks | self._written.get(_key(tensor), _NONE) if self._written else marks

    def mark(self, tensor: Tensor, marks: Iterable[str]) -> None:
        """Add marks to a tensor."""
        self._marks[id(tensor)] = self._marks.get(id(tensor), _NONE) | frozenset(marks)
        self._alive.append(tensor)

    def _write(self, tensor: Tensor, marks: Iterable[str]) -> None:
        key = _key(tensor)
        self._written[key] = self._written.get(key, _NONE) | frozenset(marks)
        self._alive.append(tensor)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.sampling:
            return result
        name = getattr(func, "__name__", "")
        if name in _RANDOM and _draws(name, args, kwargs):
            for tensor in tensors_in(result):
                self.mark(tensor, {f"random:{name}"})
        read = args[:1] if name in _TYPED else (args, kwargs)
        found = frozenset().union(*(self._of(t) for t in tensors_in(read)))
        if not found:
            return result
        if name in _ESCAPES:
            for mark in found:
                self.escaped.setdefault(mark, name)
            return result
        if name in _SEPARATE:
            inputs = args[0] if len(args) == 1 and isinstance(args[0], (list, tuple)) else args
            for output, source in zip(tensors_in(result), tensors_in(inputs), strict=True):
                self.mark(output, self._of(source))
            return result
        for tensor in tensors_in(result):
            self.mark(tensor, found)
        if _writes(name):
            target = next(tensors_in((args, kwargs)), None)
            if target is not None:
                self._write(target, found)
        for tensor in tensors_in(kwargs.get("out")):
            self._write(tensor, found)
        return result

    @contextmanager
    def inside_sample(self) -> Iterator[None]:
        """Randomness in here is the distribution's own."""
        self.sampling = True
        try:
            yield
        finally:
            self.sampling = False


def _draws(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call of a function that may be random is so: dropout and batch normalisation only while training."""
    position = {"dropout": 2, "alpha_dropout": 2, "feature_dropout": 2, "batch_norm": 5}.get(name)
    if position is None:
        return True
    if "training" in kwargs:
        return bool(kwargs["training"])
    return bool(args[position]) if len(args) > position else name != "batch_norm"


def _writes(name: str) -> bool:
    """Whether a function changes its first argument's values in place."""
    if name.startswith("__"):
        return name == "__setitem__" or name.startswith("__i") and name not in ("__index__", "__int__", "__invert__")
    return name.endswith("_") and name not in _NO_WRITE


def _key(tensor: Tensor) -> int:
    with torch._C.DisableTorchFunction():
        return tensor.untyped_storage()._cdata
