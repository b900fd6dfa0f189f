"""One run of a program: every site recorded, latents and parameters given or drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor

from ppl_em.errors import ModelError, PplEmError, message
from ppl_em.trace.footprint import full_plates, remember_unexpanded
from ppl_em.trace.provenance import Provenance
from ppl_em.trace.record import Frame, ParameterSeen, Record, Run
from ppl_em.trace.recorder import Recorder
from ppl_em.trace.time_axis import TimeMode, time_mode

__all__ = ["Frame", "ParameterSeen", "Record", "Recorder", "Run", "run_program"]


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
    time: str | tuple[int, ...] | None = None,
    compact: bool = False,
) -> Run:
    """Run a program once and record it.

    Args:
        model, args, kwargs: the program and its arguments.
        assign: value of a latent by name and distribution; None lets it be drawn from its distribution.
        parameters: constrained values by name; parameters not named take the program's initial values.
        follow: follow provenance (slower).
        unobserve: ``assign`` may also replace observed values (they are to be predicted).
        keep_subsamples: a declared subsample size is that of the arguments (a batch of a loader).
        time: how loops over ``ppl_em.markov`` run: ``"vector"``, some steps only, or None for step by step.
        compact: discrete latents that are drawn have one value for all elements of large plates.

    Raises:
        ModelError: the program fails, or uses a construct that cannot be read.
    """
    provenance = Provenance() if follow else None
    declared: dict[str, int] = {}
    recorder = Recorder(assign or (lambda name, fn: None), parameters or {}, provenance, unobserve, compact)
    mode = None if time is None else TimeMode(recorder.records, time)
    with ExitStack() as stack:
        stack.enter_context(time_mode(mode))
        stack.enter_context(full_plates(keep=keep_subsamples, declared=declared))
        stack.enter_context(remember_unexpanded())
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
    axes = () if mode is None else tuple(mode.axes)
    return Run(recorder.records, recorder.seen, provenance, returned, declared, axes)
