"""The table of a benchmark run, as Markdown and as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.race import Outcome
from benchmarks.task import Task

OURS = "ppl_em"

Results = Mapping[tuple[str, int], Mapping[str, Outcome]]
"""Outcomes by task and number of threads, then by contender."""


def markdown(results: Results, tasks: Mapping[str, Task], machine: Mapping[str, str]) -> str:
    """Renders the results; a ratio above 1 means that ours is faster.

    Args:
        results: What was measured.
        tasks: The tasks by name.
        machine: Description of the machine.

    Returns:
        A Markdown document.
    """
    lines = ["# Benchmarks", "", ", ".join(f"{key} {value}" for key, value in machine.items()), ""]
    lines += ["Times are medians of interleaved runs; the ratio is the other's time per step over ours.", ""]
    for name in sorted({task for task, _ in results}):
        lines += [
            f"## {name}",
            "",
            tasks[name].what,
            "",
            *_table(name, results),
            "",
            *_verdicts(tasks[name], name, results),
        ]
    return "\n".join(lines)


def _table(name: str, results: Results) -> list[str]:
    lines = [
        "| threads | contender | ms per step | ratio | ms to start | spread | log-likelihood |",
        "|---|---|---|---|---|---|---|",
    ]
    for (task, threads), outcomes in results.items():
        if task != name:
            continue
        ours = outcomes.get(OURS)
        for contender, outcome in outcomes.items():
            ratio = f"{outcome.step_seconds / ours.step_seconds:.2f}" if ours else "–"
            lines.append(
                f"| {threads} | {contender} | {1e3 * outcome.step_seconds:.3f} | {ratio} "
                f"| {1e3 * outcome.start_seconds:.1f} | {outcome.spread:.0%} | {outcome.log_likelihood:.6f} |"
            )
    return lines


def growth(sizes: Mapping[str, int], outcomes: Mapping[str, Outcome]) -> float:
    """Slope of log time per step against log size, by least squares: 1 where time is linear in the size."""
    points = [(math.log(sizes[name]), math.log(outcomes[name].step_seconds)) for name in sizes]
    x, y = (statistics.fmean(column) for column in zip(*points, strict=True))
    return sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)


def _verdicts(task: Task, name: str, results: Results) -> list[str]:
    lines = []
    for (other, threads), outcomes in results.items():
        if other != name:
            continue
        if task.sizes is not None:
            lines.append(f"{threads} thread(s): time grows as size to the power {growth(task.sizes, outcomes):.2f}.")
        if task.limit_seconds is not None:
            took = outcomes[OURS].step_seconds
            verdict = "within" if took <= task.limit_seconds else "OVER"
            lines.append(f"{threads} thread(s): {took:.2f} s, {verdict} the limit of {task.limit_seconds:g} s.")
    return [*lines, ""] if lines else []


def write(directory: Path, results: Results, tasks: Mapping[str, Task], machine: Mapping[str, str]) -> None:
    """Writes ``benchmarks.md`` and ``benchmarks.json``, each whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "machine": dict(machine),
        "results": [
            {
                "task": name,
                "what": tasks[name].what,
                "threads": threads,
                "contenders": {other: dataclasses.asdict(outcome) for other, outcome in outcomes.items()},
            }
            for (name, threads), outcomes in results.items()
        ],
    }
    for name, text in (
        ("benchmarks.md", markdown(results, tasks, machine)),
        ("benchmarks.json", json.dumps(record, indent=2)),
    ):
        partial = directory / f".{name}.partial"
        partial.write_text(text + "\n", encoding="utf-8")
        os.replace(partial, directory / name)
