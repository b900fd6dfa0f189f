"""Memory for the work arrays of the chain kernels, kept from one call to the next."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor


class ChainBuffers:
    """Named work arrays that are allocated once and used again.

    The first touch of fresh memory costs more than most of the arithmetic of an E-step; a loop of E-steps
    that hands the same buffers to each of them pays for it once. What a call returns may lie in its buffers
    and is then overwritten by the next call with the same ones.
    """

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """An array of undefined content with another's dtype and device; one name has one memory."""
        size = math.prod(shape)
        memory = self._memory.get(name)
        if memory is None or memory.numel() < size or memory.dtype != like.dtype or memory.device != like.device:
            memory = self._memory[name] = like.new_empty(size)
        return memory[:size].view(*shape)
