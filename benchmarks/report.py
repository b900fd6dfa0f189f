"""The record of a benchmark run: JSON with all times, Markdown with the ratios and what they are held against."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.curves import Curve, curves, growth
from benchmarks.race import Outcome, on_device
from benchmarks.task import OURS, Task

GPU = on_device("cuda")

Results = Mapping[tuple[str, int], Mapping[str, Outcome]]
"""Outcomes by task and number of threads, then by contender."""


@dataclass(frozen=True)
class Record:
    """A run of the benchmarks.

    Attributes:
        results: What was measured.
        tasks: The tasks by name.
        machine: Description of the machine.
        date: When it ended, ISO 8601.
        errors: Why a task has no result, by task and number of threads.
    """

    results: Results
    tasks: Mapping[str, Task]
    machine: Mapping[str, str]
    date: str = ""
    errors: Mapping[tuple[str, int], str] = field(default_factory=dict)


def markdown(record: Record) -> str:
    """Renders a run; a ratio is our time over the peer's, below 1 means that ours is faster."""
    lines = ["# Benchmarks", "", f"{record.date}: " + ", ".join(f"{k} {v}" for k, v in record.machine.items()), ""]
    lines += [
        "Times are medians of interleaved runs in processes of their own; all contenders have the same data, the same "
        "start and the same number of steps, and reach the same log-likelihood. The ratio is our time per step over "
        "the peer's. The start (tracing, planning, checks) is counted apart, in steps of ours. Peaks of memory are in "
        "multiples of the data, the data included.",
        "",
        *_targets(record),
        *_limits(record),
        *_growth(record),
        *[f"{name}, {threads} thread(s): **failed**, {why}" for (name, threads), why in record.errors.items()],
        "",
        "## All times",
        "",
    ]
    for name in sorted({task for task, _ in record.results}):
        lines += [f"### {name}", "", record.tasks[name].what, "", *_table(name, record.results), ""]
    return "\n".join(lines)


def verdict(measured: float, limit: float | None) -> str:
    """A number beside its limit, in words."""
    if limit is None:
        return "stated"
    return "met" if measured <= limit else "**missed**"


def _targets(record: Record) -> list[str]:
    rows = []
    gpu = any(GPU in outcomes for outcomes in record.results.values())
    for (name, threads), outcomes in record.results.items():
        task = record.tasks[name]
        if task.target is None or task.target.peer not in outcomes:
            continue
        ours, peer = outcomes[OURS], outcomes[task.target.peer]
        ratio, start = ours.step_seconds / peer.step_seconds, ours.start_seconds / ours.step_seconds
        cells = [
            task.what,
            str(threads),
            f"{1e3 * ours.step_seconds:.3g} ± {ours.spread:.0%}",
            f"{task.target.peer} {1e3 * peer.step_seconds:.3g} ± {peer.spread:.0%}",
            f"{ratio:.3f}",
            "–" if task.target.ratio is None else f"{task.target.ratio:g}",
            verdict(ratio, task.target.ratio),
            f"{start:.1f}" if task.target.start_steps is not None else "–",
            verdict(start, task.target.start_steps) if task.target.start_steps is not None else "–",
            _peak(ours, task.memory_limit),
        ]
        if gpu:
            cells.append(f"{1e3 * outcomes[GPU].step_seconds:.3g}" if GPU in outcomes else "–")
        rows.append("| " + " | ".join(cells) + " |")
    if not rows:
        return []
    head = ["task", "threads", "ours, ms per step", "peer, ms per step", "ours / peer", "at most", "", "start, steps"]
    head += ["at most 20", "peak of memory", *(["on a GPU, ms"] if gpu else [])]
    return ["## Targets", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head), *rows, ""]


def _peak(outcome: Outcome, limit: float | None) -> str:
    if outcome.peak is None:
        return "–"
    return f"{outcome.peak:.2f}" + ("" if limit is None else f" ({verdict(outcome.peak, limit)}, at most {limit:g})")


def _limits(record: Record) -> list[str]:
    rows = []
    for (name, threads), outcomes in record.results.items():
        limit = record.tasks[name].limit_seconds
        if limit is None:
            continue
        for contender, outcome in outcomes.items():
            if contender == OURS or OURS not in outcomes:
                took = outcome.step_seconds
                rows.append(f"| {name} | {contender} | {threads} | {took:.3f} | {limit:g} | {verdict(took, limit)} |")
    if not rows:
        return []
    return [
        "## Limits",
        "",
        "| task | program | threads | seconds | at most | |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
    ]


def _growth(record: Record) -> list[str]:
    found: list[Curve] = curves(record.results, record.tasks)
    if not found:
        return []
    lines = ["## Growth", "", "Time per step grows as the size to the power (least squares on logarithms):", ""]
    lines += ["| | size | contender | from | to | power |", "|---|---|---|---|---|---|"]
    for curve in found:
        for contender, points in curve.seconds.items():
            sizes = sorted(points)
            lines.append(
                f"| {curve.family} | {curve.axis} | {contender} | {sizes[0]:,} | {sizes[-1]:,} | {growth(points):.2f} |"
            )
    return [*lines, "", "![Cost against size](growth.png)", ""]


def _table(name: str, results: Results) -> list[str]:
    lines = [
        "| threads | contender | ms per step | ours / its | ms to start | spread | peak | log-likelihood |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (task, threads), outcomes in results.items():
        if task != name:
            continue
        ours = outcomes.get(OURS)
        for contender, outcome in outcomes.items():
            ratio = f"{ours.step_seconds / outcome.step_seconds:.3f}" if ours else "–"
            lines.append(
                f"| {threads} | {contender} | {1e3 * outcome.step_seconds:.3f} | {ratio} "
                f"| {1e3 * outcome.start_seconds:.1f} | {outcome.spread:.0%} | {_peak(outcome, None)} "
                f"| {outcome.log_likelihood:.6f} |"
            )
    return lines


def write(directory: Path, record: Record) -> None:
    """Writes ``results.md`` and ``results.json``, each whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    whole: dict[str, Any] = {
        "date": record.date,
        "machine": dict(record.machine),
        "results": [_entry(record.tasks[name], name, n, outcomes) for (name, n), outcomes in record.results.items()],
        "errors": [{"task": name, "threads": n, "error": why} for (name, n), why in record.errors.items()],
    }
    for name, text in (("results.md", markdown(record)), ("results.json", json.dumps(whole, indent=2))):
        partial = directory / f".{name}.partial"
        partial.write_text(text.rstrip() + "\n", encoding="utf-8")
        os.replace(partial, directory / name)


def read(directory: Path, machine: Mapping[str, str]) -> Results:
    """Reads what ``write`` wrote on the same machine; nothing where there is no such file, or another machine's.

    Args:
        directory: Where the files are.
        machine: Description of this machine.
    """
    path = directory / "results.json"
    whole = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if whole.get("machine") != dict(machine):
        return {}
    return {
        (entry["task"], entry["threads"]): {
            name: Outcome(**{**fields, "seconds": tuple(fields["seconds"])})
            for name, fields in entry["contenders"].items()
        }
        for entry in whole["results"]
    }


def _entry(task: Task, name: str, threads: int, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "task": name,
        "what": task.what,
        "threads": threads,
        "contenders": {other: dataclasses.asdict(outcome) for other, outcome in outcomes.items()},
    }
    if task.target is not None and task.target.peer in outcomes:
        ratio = outcomes[OURS].step_seconds / outcomes[task.target.peer].step_seconds
        found["target"] = {**dataclasses.asdict(task.target), "measured": ratio}
    return found
