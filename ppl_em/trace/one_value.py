"""One value for all elements of a large plate: what a run is for then costs no more than a single element.

A program that is vectorised over a plate broadcasts a value of size one along it, so that its distributions' arguments
stay small; drawn values would make it gather a row of parameters for every element.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ppl_em.trace.thinning import LARGE


def one_value(fn: Any, plates: Iterable[Any]) -> Tensor | None:
    """A value of size one along large plates, for a discrete latent; None where its distribution is to be drawn from.

    Args:
        fn: the latent's distribution.
        plates: the plates around it, with their ``dim`` and ``size``.
    """
    shape = tuple(fn.batch_shape)
    declared = {f.dim: f.size for f in plates if f.dim is not None}
    if fn.batch_shape.numel() <= LARGE or not fn.has_enumerate_support:
        return None
    if any(n != 1 and declared.get(i - len(shape)) != n for i, n in enumerate(shape)):
        return None
    try:
        support = fn.enumerate_support(expand=False)
    except NotImplementedError:
        return None
    chosen = support[torch.randint(len(support), ())]
    if any(n != 1 for n in chosen.shape[: len(shape)]):
        return None
    return chosen.reshape((1,) * len(shape) + tuple(fn.event_shape))
