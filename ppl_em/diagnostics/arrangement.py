"""Observed values and draws of them in rows and columns: masked rows left out, missing elements known, copies repeated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ppl_em.diagnostics.copies import datum_of_rows, repeated
from ppl_em.distributions.structured import is_structured
from ppl_em.trace.run import Record

#: Columns of vector-valued observations that are looked at one by one; of wider ones, their mean and spread.
MOST_COLUMNS = 12


class Arrangement:
    """The rows of one site, or of a family of sites, that are compared.

    Args:
        records: observed sites.
        members: names of the family.
        counts: how many data each datum stands for.
        plate: the data's.
    """

    def __init__(
        self, records: Mapping[str, Record], members: list[str], counts: Tensor | None, plate: str | None
    ) -> None:
        self.records, self.members = records, members
        keep = torch.cat([_kept(records[m]) for m in members])
        hidden = torch.cat([_hidden(records[m]) for m in members])
        self.keep = keep
        if hidden.shape[-1] > MOST_COLUMNS:  # their mean and spread
            hidden = hidden.all(-1, keepdim=True).expand(-1, 2)
        self.hidden = hidden[keep]
        self.repeats: Tensor | None = None
        if counts is not None and plate is not None:
            rows = [_datum(records[m], plate, counts) for m in members]
            self.repeats = torch.cat(rows)[self.keep]
            self.hidden = self.hidden.repeat_interleave(self.repeats, 0)

    def of(self, draws: Mapping[str, Tensor]) -> Tensor:
        """Values (S, *batch, *event) by site, as (S, rows, columns)."""
        rows = torch.cat([_rows(self.records[m], draws[m]) for m in self.members], 1)[:, self.keep]
        return rows if self.repeats is None else repeated(rows, self.repeats)


def _datum(record: Record, plate: str, counts: Tensor) -> Tensor:
    """How many data each row stands for."""
    batch = record.value.shape[: record.value.dim() - len(record.fn.event_shape)]
    datum = datum_of_rows(record, plate, batch)
    return torch.ones(batch.numel(), dtype=torch.long) if datum is None else counts[datum]


def _hidden(record: Record) -> Tensor:
    """Which elements are missing, (rows, columns)."""
    batch = record.value.shape[: record.value.dim() - len(record.fn.event_shape)].numel()
    if record.hidden is None:
        width = (
            2 if sequences_of_symbols(record) else record.fn.event_shape.numel() if len(record.fn.event_shape) else 1
        )
        return torch.zeros(batch, width, dtype=torch.bool)
    return record.hidden.reshape(batch, -1)


def _rows(record: Any, values: Tensor) -> Tensor:
    """Values (S, *batch, *event) as (S, rows, columns)."""
    if sequences_of_symbols(record):
        return _of_sequences(record.fn, values)
    event = record.fn.event_shape.numel() if len(record.fn.event_shape) > 0 else 1
    rows = values.detach().double().reshape(len(values), -1, event)
    if event <= MOST_COLUMNS:
        return rows
    if record.hidden is None:
        return torch.stack([rows.mean(-1), rows.std(-1)], -1)
    there = (~record.hidden.reshape(-1, event)).double()
    mean = (rows * there).sum(-1) / there.sum(-1).clamp_min(1)
    spread = (((rows - mean.unsqueeze(-1)) * there).square().sum(-1) / (there.sum(-1) - 1).clamp_min(1)).sqrt()
    return torch.stack([mean, spread], -1)


def sequences_of_symbols(record: Any) -> bool:
    """Whether the values are padded sequences of symbols, with a hidden structure behind them."""
    return is_structured(record.fn) and not record.value.is_floating_point() and len(record.fn.event_shape) == 1


def _of_sequences(fn: Any, values: Tensor) -> Tensor:
    """Length and number of different symbols of each sequence (S, *batch, L), as (S, rows, 2)."""
    lengths = fn.lengths_of(values)
    inside = torch.arange(values.shape[-1], device=values.device) < lengths.unsqueeze(-1)
    ordered = values.where(inside, -1).sort(-1).values
    new = torch.cat([ordered[..., :1] >= 0, (ordered.diff(dim=-1) > 0) & (ordered[..., 1:] >= 0)], -1)
    features = torch.stack([lengths.expand(values.shape[:-1]), new.sum(-1)], -1)
    return features.double().reshape(len(values), -1, 2)


def _kept(record: Any) -> Tensor:
    """Rows that the mask lets count."""
    batch = record.value.shape[: record.value.dim() - len(record.fn.event_shape)]
    if not isinstance(record.mask, Tensor):
        return torch.full((batch.numel(),), record.mask is not False)
    return record.mask.expand(batch).reshape(-1)
