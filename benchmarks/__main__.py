"""``python -m benchmarks``: runs the tasks, prints ratios beside their targets, writes Markdown, JSON and a plot."""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from pathlib import Path

from benchmarks import curves, machine, report
from benchmarks.race import BenchmarkError, Outcome, profile, race
from benchmarks.task import OURS, Task, chosen, read_task, task_names


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmarks; returns 1 if a contender failed or contenders disagree."""
    options = _options(argv)
    tasks = {name: read_task(name) for name in chosen(options.tasks)}
    if options.profile:
        _write_profiles(tasks, options.out / "profiles")
        return 0
    description = machine.describe()
    results: dict[tuple[str, int], dict[str, Outcome]] = {}
    if options.resume:
        kept = report.read(options.out, description)
        tasks |= {name: read_task(name) for name, _ in kept}
        results |= kept
    errors: dict[tuple[str, int], str] = {}
    for name, task in tasks.items():
        for threads in options.threads:
            if (task.threads is not None and threads not in task.threads) or (name, threads) in results:
                continue
            began = time.perf_counter()
            print(f"{name}, {threads} thread(s): {task.what}", end="", file=sys.stderr, flush=True)
            devices = machine.accelerators() if threads == options.threads[0] else ()
            try:
                results[name, threads] = race(name, task, threads, options.repeats, devices)
            except BenchmarkError as error:
                print(f"\n  {error}", end="", file=sys.stderr)
                errors[name, threads] = str(error)
            print(f" ({time.perf_counter() - began:.0f} s)", file=sys.stderr)
            report.write(options.out, _record(results, tasks, description, errors))
    found = curves.curves(results, tasks)
    if found:
        curves.draw(found, options.out / "growth.png")
    if results:
        print(report.markdown(_record(results, tasks, description, errors)))
    return int(bool(errors))


def _record(
    results: report.Results, tasks: dict[str, Task], description: dict[str, str], errors: dict[tuple[str, int], str]
) -> report.Record:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return report.Record(results, tasks, description, now, errors)


def _write_profiles(tasks: dict[str, Task], directory: Path) -> None:
    """Where ours spends its time, one file for each task."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, task in tasks.items():
        if OURS not in task.contenders:
            continue
        steps = (task.contenders[OURS].num_steps or task.num_steps)[1]
        text = profile(name, OURS, task)
        page = f"# {name}\n\n{task.what}: one thread, {steps} steps, by the time in each function itself.\n\n```\n{text}\n```\n"
        (directory / f"{name.replace('/', '_')}.md").write_text(page, encoding="utf-8")


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("tasks", nargs="*", default=task_names(), help="tasks, or modules of tasks (default: all)")
    parser.add_argument("--peers", action="store_true", help="run ours and each peer; it is what happens anyway")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="threads of each process")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of each task")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="where to write")
    parser.add_argument(
        "--resume", action="store_true", help="keep what an earlier run on this machine has written, and do the rest"
    )
    parser.add_argument(
        "--profile", action="store_true", help="list the functions in which ours spends its time instead"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
