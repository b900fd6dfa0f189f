"""Which rows of a matrix are the same."""

from __future__ import annotations

import torch
from torch import Tensor

#: Rows that are marked at once.
CHUNK = 1 << 16


def distinct_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Different rows of integers.

    Rows are told apart by a random weighted sum modulo 2⁶⁴: different ones collide with a probability below 2⁻⁶⁰.

    Args:
        rows: (M, C) of int64.

    Returns:
        The position of one row of each kind, (R,), and the kind of every row, (M,).

    Example:
        >>> first, kind = distinct_rows(torch.tensor([[7, 1], [7, 2], [7, 1]]))
        >>> bool(kind[0] == kind[2] != kind[1]), first.tolist() in ([0, 1], [1, 0])
        (True, True)
    """
    generator = torch.Generator().manual_seed(20262)
    weights = torch.randint(-(2**62), 2**62, rows.shape[1:], generator=generator).to(rows.device) * 2 + 1
    marks = torch.cat([(part * weights).sum(1) for part in rows.split(CHUNK)])
    _, kind = torch.unique(marks, return_inverse=True)
    first = torch.zeros(int(kind.max()) + 1, dtype=torch.int64, device=rows.device)
    first[kind.flip(0)] = torch.arange(len(rows), device=rows.device).flip(0)
    return first, kind
