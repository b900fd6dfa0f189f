"""Large arguments of which many rows are alike, picked by an observed index: links are found for one row of each kind."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ppl_em.ir import Link
from ppl_em.ir.rows import distinct_rows


@dataclass(frozen=True)
class LikeRows:
    """The elements of an argument along plates, grouped by their values.

    Args:
        order: dimensions of the argument, those of plates first.
        shape: sizes in this order.
        leading: number of plate dimensions.
        first: (R,) one row of each kind.
        kind: (M,) the kind of each row.
    """

    order: tuple[int, ...]
    shape: tuple[int, ...]
    leading: int
    first: Tensor
    kind: Tensor

    def take(self, value: Tensor) -> Tensor:
        """One row of each kind, (R, …); differentiable."""
        return value.permute(self.order).reshape(-1, *self.shape[self.leading :])[self.first]

    def spread(self, link: Link) -> Link:
        """A link of these rows as one of the whole argument."""
        index, slope, offset = (None if t is None else self._spread(t) for t in (link.index, link.slope, link.offset))
        assert index is not None
        return replace(link, index=index, slope=slope, offset=offset)

    def _spread(self, rows: Tensor) -> Tensor:
        back = [self.order.index(i) for i in range(len(self.order))]
        return rows[self.kind].reshape(self.shape).permute(back)


def like_rows(values: Sequence[Tensor], dims: Sequence[str], plates: Collection[str]) -> LikeRows | None:
    """Rows that are the same in several runs; None where most are different.

    Args:
        values: an argument's compact value in each run.
        dims: names of its batch dimensions.
        plates: those that are plates.
    """
    leading = [i for i, d in enumerate(dims) if d in plates]
    rest = [i for i in range(values[0].dim()) if i not in leading]
    if not leading or not rest:
        return None
    order = (*leading, *rest)
    shape = tuple(values[0].shape[i] for i in order)
    count = torch.Size(shape[: len(leading)]).numel()
    kind, first = torch.zeros(count, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    for value in values:
        rows = value.detach().permute(order).reshape(count, -1)
        bits = rows.view(torch.int64 if rows.dtype == torch.float64 else torch.int32).long()
        _, own = distinct_rows(bits)
        first, kind = distinct_rows(torch.stack([kind, own.to(kind.device)], 1))
    return LikeRows(order, shape, len(leading), first, kind) if len(first) <= count // 2 else None
