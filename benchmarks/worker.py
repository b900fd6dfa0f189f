"""One contender in a process of its own: ``python -m benchmarks.worker TASK CONTENDER THREADS DEVICE``.

It prepares, reports that it is ready, then serves one order for each line of its input, and answers with a line of
JSON: ``run STEPS`` times a run, ``memory STEPS`` measures its peak of memory, ``profile STEPS`` lists the functions in
which it spends its time. Waiting costs nothing, so that the contenders can take turns.
"""

from __future__ import annotations

import cProfile
import ctypes
import gc
import io
import json
import os
import pstats
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.task import Run

#: Functions in a profile.
PROFILE_LINES = 25


def main(task_name: str, contender_name: str, threads: str, device: str = "cpu") -> None:
    """Serves orders until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints goes to stderr, not among the answers

    import torch

    torch.set_num_threads(int(threads))
    torch.set_default_dtype(torch.float64)
    if device != "cpu":
        torch.set_default_device(device)
    torch.manual_seed(0)
    from benchmarks.task import read_task

    run = read_task(task_name).contenders[contender_name].prepare()
    print(json.dumps({"ready": True}), file=answers)
    orders = {"run": timed, "memory": remembered, "profile": profiled}
    for line in sys.stdin:
        order, num_steps = line.split()
        print(json.dumps(orders[order](run, int(num_steps))), file=answers)


def timed(run: Run, num_steps: int) -> dict[str, Any]:
    """Seconds of a run, what it reached, and when each of its steps ended, where it tells."""
    gc.collect()
    begin = time.perf_counter()
    finish = run(num_steps)
    seconds = time.perf_counter() - begin
    marks = [mark - begin for mark in getattr(finish, "marks", ())]
    return {"seconds": seconds, "log_likelihood": finish(), "marks": marks}


def remembered(run: Run, num_steps: int) -> dict[str, Any]:
    """Bytes by which a run raises the peak of resident memory; None where the system does not tell."""
    gc.collect()
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not clear.exists():
        run(num_steps)
        return {"growth": None}
    # Free memory that the allocator holds back would hide what the run needs.
    ctypes.CDLL(None).malloc_trim(0)
    clear.write_text("5")
    before = _kilobytes(status, "VmRSS")
    run(num_steps)
    return {"growth": 1024 * (_kilobytes(status, "VmHWM") - before)}


def profiled(run: Run, num_steps: int) -> dict[str, Any]:
    """The functions in which a run spends its time, hottest first."""
    profile = cProfile.Profile()
    profile.enable()
    run(num_steps)
    profile.disable()
    text = io.StringIO()
    pstats.Stats(profile, stream=text).strip_dirs().sort_stats("tottime").print_stats(PROFILE_LINES)
    return {"profile": "\n".join(line.rstrip() for line in text.getvalue().splitlines() if line.strip())}


def _kilobytes(status: Path, name: str) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
