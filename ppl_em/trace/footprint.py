"""Running other people's programs without leaving a footprint on global state."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import pyro
import torch
from pyro.poutine.broadcast_messenger import BroadcastMessenger
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.runtime import _DIM_ALLOCATOR, _PYRO_STACK
from pyro.poutine.subsample_messenger import SubsampleMessenger
from torch import Tensor

from ppl_em.errors import DataError, message


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Restore the parameter store, random states, validation flag and default dtype on the way out.

    Inside, the parameter store is empty, no handlers of the caller's are active (a query may be asked from within a
    guide that is being traced), and the random state is that of ``seed``. Validation by Pyro is off: values
    and supports are checked by the tracer itself, with the site's name in the message.

    Args:
        seed: seed of Python's, NumPy's and PyTorch's generators inside the block.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    dtype, plate_dims, handlers = torch.get_default_dtype(), list(_DIM_ALLOCATOR._stack), list(_PYRO_STACK)
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with (
            pyro.get_param_store().scope(),
            torch.random.fork_rng(devices=list(devices)),
            pyro.validation_enabled(False),
        ):
            _PYRO_STACK[:] = []
            _DIM_ALLOCATOR._stack[:] = []
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_default_dtype(dtype)
        _PYRO_STACK[:] = handlers
        _DIM_ALLOCATOR._stack[:] = plate_dims


def generator_states() -> dict[str, object]:
    """States of the random generators that are not PyTorch's, comparable."""
    numpy_state = np.random.get_state()
    return {"Python's generator": random.getstate(), "NumPy's generator": (bytes(numpy_state[1]), numpy_state[2])}  # type: ignore[index]


@contextmanager
def full_plates(
    indices: Mapping[str, Tensor] | None = None, keep: bool = False, declared: dict[str, int] | None = None
) -> Iterator[None]:
    """Let plates that would draw a random subsample run over all their elements, or over given ones.

    Pyro refuses a subsample site conditioned on all indices ("subsample_size does not match"), so the plate's own
    method is replaced for the duration. A subsample that the program gives by its indices is left alone.

    Args:
        indices: elements of a plate, by the plate's name.
        keep: a declared subsample size is the size of the batch that the program was called with: keep it.
        declared: filled with the subsample sizes that the program declares, by plate.
    """
    original = SubsampleMessenger.__dict__["_subsample"]
    chosen = indices or {}

    def _subsample(name, size=None, subsample_size=None, subsample=None, use_cuda=None, device=None):  # type: ignore[no-untyped-def]
        if size is not None and subsample is None:
            if declared is not None and subsample_size is not None:
                declared[name] = int(subsample_size)
            if name in chosen:
                subsample = chosen[name]
            elif keep and subsample_size is not None and subsample_size < size:
                subsample = torch.arange(subsample_size, device=device)
            subsample_size = None
        return original.__func__(name, size, subsample_size, subsample, use_cuda, device)

    SubsampleMessenger._subsample = staticmethod(_subsample)  # type: ignore[method-assign]
    try:
        yield
    except ZeroDivisionError as error:
        name = _empty_plate(error)
        if name is None:
            raise
        why = "there are no data"
        raise DataError(message("the plate is empty (size 0)", site=name, why=why, hint="passing data")) from error
    finally:
        SubsampleMessenger._subsample = original  # type: ignore[method-assign]


def _empty_plate(error: ZeroDivisionError) -> str | None:
    """Name of the plate of size zero that Pyro refused to make; None if the error is another one."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    known = {} if trace is None else trace.tb_frame.f_locals
    made_here = isinstance(known.get("self"), IndepMessenger) and known.get("size") == 0
    return str(known["name"]) if made_here else None


#: Where a sample statement's message keeps the distribution as the program gave it, before plates expanded it.
GIVEN = "_given"


@contextmanager
def remember_unexpanded() -> Iterator[None]:
    """Keep the distribution that the program passed to each sample statement, before plates expanded it.

    Differentiating through an expansion over a large plate costs as much as the expanded tensor; the arguments as
    given are small.
    """
    original = BroadcastMessenger.__dict__["_pyro_sample"]

    def _pyro_sample(msg):  # type: ignore[no-untyped-def]
        before = msg["fn"]
        original.__func__(msg)
        if msg["fn"] is not before:
            msg["infer"].setdefault(GIVEN, before)

    BroadcastMessenger._pyro_sample = staticmethod(_pyro_sample)  # type: ignore[method-assign]
    try:
        yield
    finally:
        BroadcastMessenger._pyro_sample = original  # type: ignore[method-assign]
