"""Isolation that can be left and entered again: a generator yields in between."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ppl_em.trace.footprint import isolated


class Isolation:
    """Random state of its own, kept from one stay to the next; the caller's is restored in between.

    Args:
        seed: of the first stay.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._state: Any = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """One stay."""
        with isolated(self.seed):
            if self._state is not None:
                python, numeric, cpu, devices = self._state
                random.setstate(python)
                np.random.set_state(numeric)
                torch.set_rng_state(cpu)
                for index, state in enumerate(devices):
                    torch.cuda.set_rng_state(state, index)
            try:
                yield
            finally:
                devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
                self._state = (random.getstate(), np.random.get_state(), torch.get_rng_state(), devices)
