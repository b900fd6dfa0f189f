"""A progress line for long fits: steps, objective, what is left to gain; their checkpoint."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from ppl_em.checkpointing import Checkpoint

#: Fits that end sooner show nothing, unless asked to.
QUIET_SECONDS = 2.0


def unit_of(state: Any) -> str:
    """What a step of a run goes through: all data, or one batch of them."""
    plan = getattr(state, "plan", None)
    return "batch" if plan is not None and plan.by_batch else "step"


class Progress:
    """Progress of a fit.

    Args:
        show: True always, False never, None in a terminal when the fit takes long.
        starts: number of starts.
        checkpoint: keeps the best state, if there is one.
    """

    def __init__(self, show: bool | None, starts: int, checkpoint: Checkpoint | None = None) -> None:
        self.checkpoint = checkpoint
        self.show = sys.stderr.isatty() if show is None else show
        self.delay = QUIET_SECONDS if show is None else 0.0
        self.starts = starts
        self._began = time.monotonic()
        self._last = 0.0
        self._bar: Any = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        if self.checkpoint is not None:
            self.checkpoint.write()

    def update(self, start: int, state: Any) -> None:
        """Show a state of a start, and keep it if it is the best."""
        if self.checkpoint is not None:
            self.checkpoint.see(state.parameters, state.objective)
        now = time.monotonic()
        if not self.show or now - self._began < self.delay or (now - self._last < 0.1 and state.status is None):
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(unit=unit_of(state), dynamic_ncols=True, leave=True, file=sys.stderr)
        self._last = now
        if hasattr(state, "describe"):
            text = state.describe()
        else:
            left = f"{state.remaining:.1e} nats to gain" if state.remaining < float("inf") else "gaining"
            text = f"objective {state.objective:.6f}, {left}"
        self._bar.set_description_str(f"start {start + 1}/{self.starts}", refresh=False)
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(max(0, state.step - self._bar.n) if state.step > self._bar.n else 0)
        self._bar.refresh()
