"""Runs the contenders of a task in turns and takes medians."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.task import Task

ROOT = Path(__file__).parents[1]
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Outcome:
    """What one contender did.

    Attributes:
        step_seconds: Median time of one step, in seconds.
        start_seconds: Median time of a run beyond its steps: tracing, planning, checking the input.
        spread: Interquartile range of the time of one step over rounds, relative to its median. Where it is
            not small, the number of steps was too small for this machine.
        log_likelihood: Reached after the larger number of steps, in nats.
        seconds: All times of the longer run.
    """

    step_seconds: float
    start_seconds: float
    spread: float
    log_likelihood: float
    seconds: tuple[float, ...]


class BenchmarkError(RuntimeError):
    """A contender failed, or contenders with the same algorithm disagree."""


@dataclass
class _Worker:
    name: str
    process: subprocess.Popen[str]

    def answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise BenchmarkError(f"{self.name} ended with status {self.process.wait()}")
        return json.loads(line)

    def run(self, num_steps: int) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{num_steps}\n")
        self.process.stdin.flush()
        return self.answer()


def race(name: str, task: Task, threads: int, repeats: int) -> dict[str, Outcome]:
    """Times all contenders of a task, in turns: a slow spell of the machine hits all of them alike.

    Args:
        name: The task's name.
        task: The task.
        threads: Threads that each process may use.
        repeats: Rounds; the first one, which warms up, is not counted.

    Returns:
        Outcome by contender.

    Raises:
        BenchmarkError: A contender failed, or equal algorithms reached different likelihoods.
    """
    steps = {other: contender.num_steps or task.num_steps for other, contender in task.contenders.items()}
    times: dict[str, list[tuple[float, float]]] = {other: [] for other in task.contenders}
    reached: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(_worker(name, other, threads)) for other in task.contenders]
        for worker in workers:
            worker.answer()
        for round_ in range(min(repeats, task.max_repeats) + 1):
            for worker in workers:
                short, long = (worker.run(num_steps) for num_steps in steps[worker.name])
                if round_ > 0:
                    times[worker.name].append((short["seconds"], long["seconds"]))
                reached[worker.name] = long["log_likelihood"]
    _check_agreement(task, reached)
    return {other: _outcome(times[other], steps[other], reached[other]) for other in task.contenders}


def _outcome(times: list[tuple[float, float]], num_steps: tuple[int, int], reached: float) -> Outcome:
    """Separates steps from start, round by round: the two runs of a round saw the same machine."""
    short, long = num_steps
    steps = [(b - a) / (long - short) for a, b in times]
    starts = [b - step * long for (_, b), step in zip(times, steps, strict=True)]
    step = statistics.median(steps)
    quartiles = statistics.quantiles(steps, n=4) if len(steps) > 1 else [step] * 3
    return Outcome(
        step_seconds=step,
        start_seconds=statistics.median(starts),
        spread=(quartiles[2] - quartiles[0]) / abs(step),
        log_likelihood=reached,
        seconds=tuple(b for _, b in times),
    )


def _check_agreement(task: Task, reached: dict[str, float]) -> None:
    """A ratio means something only if both did the same work."""
    same = {name: reached[name] for name, contender in task.contenders.items() if contender.same_algorithm}
    if same and max(same.values()) - min(same.values()) > task.tolerance:
        raise BenchmarkError(f"different log-likelihoods after equal steps: {same}")


@contextlib.contextmanager
def _worker(task: str, contender: str, threads: int) -> Iterator[_Worker]:
    environment = {**os.environ, **{name: str(threads) for name in THREAD_VARIABLES}}
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.worker", task, contender, str(threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    try:
        yield _Worker(contender, process)
    finally:
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
