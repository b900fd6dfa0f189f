"""One contender in a process of its own: ``python -m benchmarks.worker TASK CONTENDER THREADS``.

It prepares, reports that it is ready, then times one run for each line ``num_steps`` on its input, and
answers with a line of JSON. Waiting costs nothing, so that the contenders can take turns.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time


def main(task_name: str, contender_name: str, threads: str) -> None:
    """Serves runs until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints goes to stderr, not among the answers

    import torch

    torch.set_num_threads(int(threads))
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    from benchmarks.task import read_task

    run = read_task(task_name).contenders[contender_name].prepare()
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        num_steps = int(line)
        gc.collect()
        begin = time.perf_counter()
        finish = run(num_steps)
        seconds = time.perf_counter() - begin
        print(json.dumps({"seconds": seconds, "log_likelihood": finish()}), file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
