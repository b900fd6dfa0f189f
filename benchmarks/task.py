"""What is timed: a task is one model on one data set, with several contenders that fit it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass

OURS = "ppl_em"

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
        needs: Distribution that must be installed for it; without it the contender is left out, and the table says so.
    """

    prepare: Callable[[], Run]
    same_algorithm: bool = True
    num_steps: tuple[int, int] | None = None
    needs: str | None = None


@dataclass(frozen=True)
class Target:
    """What our time of a step may be, relative to a peer's.

    Attributes:
        peer: The contender that ours is held against.
        ratio: Our time of a step over the peer's, at most; None where it is only stated.
        start_steps: What our start (tracing, planning, checks) may take, in steps of ours; None: not limited.
    """

    peer: str
    ratio: float | None = None
    start_steps: float | None = 20.0


@dataclass(frozen=True)
class Point:
    """A task's place on a curve of cost against size.

    Attributes:
        family: What is drawn in one panel, e.g. "diagonal mixture".
        axis: The size that varies: N, K, T or D.
        size: Its value here.
    """

    family: str
    axis: str
    size: int


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
        threads: Numbers of threads at which it is worth running; None for all.
        target: What our time is held against.
        limit_seconds: What one step of ours may take, where that is absolute; without a contender of ours, what one
            step of each may take.
        memory: Bytes of the data, of which peaks of memory are multiples; None where memory is not the subject.
        memory_limit: The peak of ours at most, in multiples of the data.
        points: The curves that it belongs to.
    """

    what: str
    contenders: Mapping[str, Contender]
    num_steps: tuple[int, int] = (2, 22)
    tolerance: float = 1e-5
    max_repeats: int = 50
    threads: tuple[int, ...] | None = None
    target: Target | None = None
    limit_seconds: float | None = None
    memory: int | None = None
    memory_limit: float | None = None
    points: tuple[Point, ...] = ()


def task_names() -> list[str]:
    """Returns the names of all tasks: ``module``, or ``module/variant`` where a module holds several."""
    package = importlib.import_module("benchmarks.tasks")
    names = []
    for module in sorted(module.name for module in pkgutil.iter_modules(package.__path__)):
        found = _of_module(module)
        names += [module] if isinstance(found, Task) else [f"{module}/{variant}" for variant in found]
    return names


def chosen(names: list[str]) -> list[str]:
    """Returns the tasks of a selection, in which a module's name stands for all its variants.

    Raises:
        SystemExit: A name is no task's.
    """
    known = task_names()
    found = [task for name in names for task in known if name in (task, task.partition("/")[0])]
    for name in names:
        if not any(name in (task, task.partition("/")[0]) for task in known):
            raise SystemExit(f"no task '{name}'. Try one of: {', '.join(known)}.")
    return list(dict.fromkeys(found))


def read_task(name: str) -> Task:
    """Imports one task by name."""
    module, _, variant = name.partition("/")
    found = _of_module(module)
    return found if isinstance(found, Task) else found[variant]


def _of_module(module: str) -> Task | Mapping[str, Task]:
    return importlib.import_module(f"benchmarks.tasks.{module}").TASK
