"""Runs the contenders of a task in turns and takes medians."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.task import OURS, Task

ROOT = Path(__file__).parents[1]
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


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
        peak: Peak of memory in multiples of the data, the data themselves included; None where not measured.
    """

    step_seconds: float
    start_seconds: float
    spread: float
    log_likelihood: float
    seconds: tuple[float, ...]
    peak: float | None = None


#: Marked steps that are not counted.
SETTLING = 1


class BenchmarkError(RuntimeError):
    """A contender failed, or contenders with the same algorithm disagree."""


@dataclass
class _Worker:
    name: str
    process: subprocess.Popen[str]

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise BenchmarkError(f"{self.name} ended with status {self.process.wait()}")
        return json.loads(line)

    def order(self, what: str, num_steps: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what} {num_steps}\n")
        self.process.stdin.flush()
        return self.answer()


def race(name: str, task: Task, threads: int, repeats: int, devices: Sequence[str] = ()) -> dict[str, Outcome]:
    """Times all contenders of a task, in turns: a slow spell of the machine hits all of them alike.

    Args:
        name: The task's name.
        task: The task.
        threads: Threads that each process may use.
        repeats: Rounds; the first one, which warms up, is not counted.
        devices: Accelerators on which ours runs too, as a further contender each.

    Returns:
        Outcome by contender; contenders that are not installed are missing.

    Raises:
        BenchmarkError: A contender failed, or equal algorithms reached different likelihoods.
    """
    runners = {other: c for other, c in task.contenders.items() if c.needs is None or installed(c.needs)}
    if OURS in runners:
        runners.update({on_device(device): runners[OURS] for device in devices})
    steps = {other: contender.num_steps or task.num_steps for other, contender in runners.items()}
    times: dict[str, list[tuple[float, float]]] = {other: [] for other in runners}
    marks: dict[str, list[float]] = {other: [] for other in runners}
    reached: dict[str, float] = {}
    peaks: dict[str, float | None] = {}
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(_worker(name, other, threads)) for other in runners]
        for worker in workers:
            worker.answer()
        for round_ in range(min(repeats, task.max_repeats) + 1):
            for worker in workers:
                short, long = (worker.order("run", num_steps) for num_steps in steps[worker.name])
                if round_ > 0:
                    times[worker.name].append((short["seconds"], long["seconds"]))
                    marks[worker.name].append(_by_marks(long["marks"]))
                reached[worker.name] = long["log_likelihood"]
        for worker in workers:
            peaks[worker.name] = _peak(task, worker, steps[worker.name][0])
    _check_agreement({other: reached[other] for other, c in runners.items() if c.same_algorithm}, task.tolerance)
    return {
        other: _outcome(times[other], marks[other], steps[other], reached[other], peaks[other]) for other in runners
    }


def profile(name: str, contender: str, task: Task, threads: int = 1) -> str:
    """Returns where one contender spends the time of its longer run, as text."""
    short, long = task.contenders[contender].num_steps or task.num_steps
    with _worker(name, contender, threads) as worker:
        worker.answer()
        worker.order("run", short)
        return worker.order("profile", long)["profile"]


def installed(distribution: str) -> bool:
    """Whether a distribution is installed."""
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _peak(task: Task, worker: _Worker, num_steps: int) -> float | None:
    if task.memory is None:
        return None
    growth = worker.order("memory", num_steps)["growth"]
    return None if growth is None else 1.0 + growth / task.memory


def _by_marks(marks: list[float]) -> float:
    """Median time of a step between marks, the first steps (in which rules are proven) left out; NaN without marks."""
    gaps = [b - a for a, b in itertools.pairwise(marks)][SETTLING:]
    return statistics.median(gaps) if gaps else math.nan


def _outcome(
    times: list[tuple[float, float]],
    marks: list[float],
    num_steps: tuple[int, int],
    reached: float,
    peak: float | None = None,
) -> Outcome:
    """Separates steps from start, round by round: the two runs of a round saw the same machine.

    A contender that tells when each step ended is timed by that: where the start takes seconds, the difference of two runs
    is noise.
    """
    short, long = num_steps
    steps = [(b - a) / (long - short) if math.isnan(m) else m for (a, b), m in zip(times, marks, strict=True)]
    starts = [b - step * long for (_, b), step in zip(times, steps, strict=True)]
    step = statistics.median(steps)
    quartiles = statistics.quantiles(steps, n=4) if len(steps) > 1 else [step] * 3
    return Outcome(
        step_seconds=step,
        start_seconds=statistics.median(starts),
        spread=(quartiles[2] - quartiles[0]) / abs(step),
        log_likelihood=reached,
        seconds=tuple(b for _, b in times),
        peak=peak,
    )


def _check_agreement(reached: dict[str, float], tolerance: float) -> None:
    """A ratio means something only if both did the same work."""
    if reached and max(reached.values()) - min(reached.values()) > tolerance:
        raise BenchmarkError(f"different log-likelihoods after equal steps: {reached}")


def on_device(device: str) -> str:
    """The name of ours as a contender on an accelerator."""
    return f"{OURS} ({device})"


@contextlib.contextmanager
def _worker(task: str, name: str, threads: int) -> Iterator[_Worker]:
    environment = {**os.environ, **{variable: str(threads) for variable in THREAD_VARIABLES}}
    contender, _, device = name.partition(" (") if name.startswith(f"{OURS} (") else (name, "", "cpu)")
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.worker", task, contender, str(threads), device.rstrip(")")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    try:
        yield _Worker(name, process)
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
