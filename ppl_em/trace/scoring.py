"""The log-density of a recorded statement, once for all elements of a plate that share it."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ppl_em.errors import ModelError, message
from ppl_em.ir.shapes import broadcast_shapes
from ppl_em.trace.layout import Layout
from ppl_em.trace.record import Record, version_of

#: Densities of fewer elements are computed as the program wrote them.
LARGE = 1 << 20


def scored(record: Record, thinned: Record, layout: Layout) -> Record:
    """A record that holds its elementwise log-density.

    Args:
        record: of an enumerated run.
        thinned: the same, perhaps without some elements of large plates.
        layout: of the run.

    Raises:
        ModelError: the value's shape does not fit the distribution's.
    """
    elementwise = shared_log_prob(thinned, layout)
    return replace(thinned, elementwise=_log_prob(thinned, record) if elementwise is None else elementwise)


def shared_log_prob(record: Record, layout: Layout) -> Tensor | None:
    """Elementwise log-density with size 1 along declared plates on which neither value nor arguments depend.

    A plate expands the transition matrix of a chain to every step of every series; what is the same everywhere is
    computed once.

    Returns:
        The log-density; None where it is small, or where not all dimensions are declared plates.
    """
    peeled = record.peeled
    if peeled is None or record.elementwise is not None or peeled.compound is not None:
        return None
    if layout.batches or layout.folded or version_of(record.value, peeled) != record.version:
        return None
    event = len(peeled.base.event_shape)
    try:
        whole = broadcast_shapes(peeled.base.batch_shape, record.value.shape[: record.value.dim() - event])
        if whole.numel() < LARGE:
            return None
        base = peeled.family(**peeled.arguments, **peeled.options, validate_args=False)
        log_prob = base.log_prob(_once(record.value, event))
    except (RuntimeError, TypeError, ValueError):
        return None
    plates = {f.dim - peeled.inner for f in record.frames if f.dim is not None}
    log_prob = log_prob.reshape((1,) * (len(whole) - log_prob.dim()) + tuple(log_prob.shape))
    return log_prob.expand([-1 if axis - len(whole) in plates else n for axis, n in enumerate(whole)])


def _once(value: Tensor, event: int) -> Tensor:
    """A value with its repeated (stride 0) batch dimensions reduced to size 1."""
    batch = value.dim() - event
    return value[
        tuple(slice(0, 1) if value.stride(i) == 0 and value.shape[i] > 1 else slice(None) for i in range(batch))
    ]


def _log_prob(thinned: Record, record: Record) -> Tensor:
    try:
        return thinned.log_prob()
    except RuntimeError as error:
        if "must match the size" not in str(error):
            raise
        batch, event = (tuple(getattr(record.fn, n, ())) for n in ("batch_shape", "event_shape"))
        why = f"the distribution has batch shape {batch} and event shape {event}"
        shape = tuple(record.value.shape)
        raise ModelError(
            message("the value does not fit its distribution", site=record.name, value=shape, why=why)
        ) from error
