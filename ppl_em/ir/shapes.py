"""Shapes that broadcast."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def broadcast_shapes(*shapes: Sequence[int]) -> torch.Size:
    """As ``torch.broadcast_shapes``, whose first call imports a computer algebra system (half a second).

    Raises:
        RuntimeError: the shapes do not fit each other.

    Example:
        >>> broadcast_shapes((3, 1), (4,))
        torch.Size([3, 4])
    """
    empty = torch.empty(())
    return torch.broadcast_tensors(*(empty.expand(torch.Size(s)) for s in shapes))[0].shape
