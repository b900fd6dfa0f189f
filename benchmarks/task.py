"""What is timed: a task is one model on one data set, with several contenders that fit it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Finish = Callable[[], float]
"""Returns the log-likelihood that a run reached; not timed."""

Run = Callable[[int], Finish]
"""Runs a number of steps from the task's start; timed."""


@dataclass(frozen=True)
class Contender:
    """One library's way to fit the task.

    Attributes:
        prepare: Makes data and start (not timed) and returns the timed function.
        same_algorithm: Whether it computes the same EM steps, so that equal numbers of steps must reach equal
            log-likelihoods; False for gradient methods.
        num_steps: Its own numbers of steps, in place of the task's, where its algorithm is another one.
    """

    prepare: Callable[[], Run]
    same_algorithm: bool = True
    num_steps: tuple[int, int] | None = None


@dataclass(frozen=True)
class Task:
    """One model on one data set.

    Attributes:
        what: The model and the sizes, in a line.
        contenders: By name; ``ppl_em`` is ours.
        num_steps: A small and a larger number of steps: the difference of the two times is the cost of the
            steps between, the rest is the cost of starting.
        tolerance: Allowed difference between log-likelihoods of contenders with the same algorithm, in nats.
        max_repeats: Rounds at most, for slow tasks.
        sizes: How much data each contender has, where that differs: the report then tells by what power of the size
            its time grows.
        limit_seconds: What one step of ours may take, where that is absolute.
    """

    what: str
    contenders: Mapping[str, Contender]
    num_steps: tuple[int, int] = (2, 22)
    tolerance: float = 1e-5
    max_repeats: int = 50
    sizes: Mapping[str, int] | None = None
    limit_seconds: float | None = None


def task_names() -> list[str]:
    """Returns the names of all tasks: the modules of `benchmarks.tasks`."""
    package = importlib.import_module("benchmarks.tasks")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def read_task(name: str) -> Task:
    """Imports one task by name."""
    return importlib.import_module(f"benchmarks.tasks.{name}").TASK
