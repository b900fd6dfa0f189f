"""``python -m benchmarks``: runs the tasks, prints ratios, writes Markdown and JSON."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import machine, report
from benchmarks.race import BenchmarkError, race
from benchmarks.task import read_task, task_names


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmarks; returns 1 if a contender failed or contenders disagree."""
    options = _options(argv)
    tasks = {name: read_task(name) for name in options.tasks}
    description = machine.describe()
    results, failed = {}, False
    for name, task in tasks.items():
        for threads in options.threads:
            print(f"{name}, {threads} thread(s): {task.what}", file=sys.stderr)
            try:
                results[name, threads] = race(name, task, threads, options.repeats)
            except BenchmarkError as error:
                print(f"  {error}", file=sys.stderr)
                failed = True
            report.write(options.out, results, tasks, description)
    print(report.markdown(results, tasks, description))
    return int(failed)


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("tasks", nargs="*", default=task_names(), help="tasks to run (default: all)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="threads of each process")
    parser.add_argument("--repeats", type=int, default=11, help="rounds of each task")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="where to write")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
