"""What one gradient step works on: a batch of the data and what it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ppl_em.svi.observations import Observations


@dataclass(frozen=True)
class Batch:
    """Arguments of one call of the program, and their place in the data.

    Args:
        args, kwargs: the program's arguments.
        size: number of data (elements of the data plate) in it.
        scale: what each datum counts in addition to the program's own scales.
        indices: elements of plates that the program is to subsample, by plate.
        plate: the data plate.
        rows: positions of the data among all data, None where all are here or where they are not known.
        weights: (size,) weight of each datum, None for one.
        observed: what an encoder reads; None reads it off the arguments.
        keep_subsamples: subsample sizes that plates declare are those of the arguments (a loader's batch).
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    size: int
    scale: float = 1.0
    indices: Mapping[str, Tensor] = field(default_factory=dict)
    plate: str | None = None
    rows: Tensor | None = None
    weights: Tensor | None = None
    observed: Observations | None = None
    keep_subsamples: bool = False
