"""Draws from a program's priors, and data drawn from them, as ArviZ's groups."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppl_em.arviz_datasets import SAMPLE_DIMS
from ppl_em.arviz_stacking import Variables, labelled, stacked
from ppl_em.prediction import stacked as one_tensor
from ppl_em.trace.footprint import isolated
from ppl_em.trace.run import Record, run_program

if TYPE_CHECKING:
    from ppl_em.ir import Program
    from ppl_em.result import FitResult

__all__ = ["prior_groups"]

NUM_DRAWS, FEWEST = 500, 20
"""Draws, and how many there are at least where more would be costly."""

MOST_STATEMENTS, MOST_ELEMENTS = 20_000, 20_000_000
"""Sample statements that are run, and elements of data that are kept, at most."""


def prior_groups(result: FitResult, program: Program) -> dict[str, Variables]:
    """Groups ``prior`` (global latents) and ``prior_predictive`` (observed sites), each draw by a run of the program.

    Parameters without a prior (``pyro.param``) are at their estimates. Programs without global continuous latents have no
    such groups.

    Args:
        result: a fit, its data at hand.
        program: the traced program.
    """
    local = program.data_plate
    names = [n for n, z in program.latents.items() if z.kind == "continuous" and local not in z.plates]
    names += [n for n, p in program.parameters.items() if p.origin == "site" and n not in names]
    if not names:
        return {}
    source = result._source_for(())
    elements = sum(s.value.tensor.numel() for s in program.sites.values() if s.role == "observed")
    count = min(NUM_DRAWS, MOST_STATEMENTS // max(1, len(program.sites)), MOST_ELEMENTS // max(1, elements))
    drawn: dict[str, list[Tensor]] = {}
    dims: dict[str, tuple[str, ...]] = {}
    with isolated(result.seed), torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Singular sample")  # torch's Wishart draws again
        for _ in range(max(FEWEST, count)):
            records = run_program(
                source.model, source.args, source.kwargs, assign=_draw, parameters=result.params, unobserve=True
            ).records
            for name, record in records.items():
                if name in names or record.role == "observed":
                    drawn.setdefault(name, []).append(record.value)
                    dims[name] = _plates(record, record.value)
    arrays = {n: labelled(one_tensor(v)[None], (*SAMPLE_DIMS, *dims[n]), n) for n, v in drawn.items()}
    predictive = {n: a for n, a in arrays.items() if n not in names}
    return {"prior": {n: arrays[n] for n in names if n in arrays}, "prior_predictive": stacked(predictive)}


def _draw(name: str, fn: Any) -> Tensor:
    return fn.sample()


def _plates(record: Record, value: Tensor) -> tuple[str, ...]:
    """Names of the leading dimensions that are plates."""
    rank = value.dim() - len(record.fn.event_shape)
    by_dim = {f.dim: f.name for f in record.frames if f.dim is not None}
    names = [by_dim.get(d) for d in range(-rank, 0)]
    found: list[str] = []
    for name in names:
        if name is None:
            break
        found.append(name)
    return tuple(found)
