"""The plan of one sequence of 100,000 steps, printed: tracing, its witnesses and planning, no inference."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.task import Contender, Finish, Run, Task
from benchmarks.tasks.hmm_long import K, T, data, model


def plans(steps: int) -> Run:
    """``print(explain(model, x))``."""
    import ppl_em

    x = torch.as_tensor(data(steps)[0])

    def run(num_steps: int) -> Finish:
        text = ""
        for _ in range(num_steps):
            text = str(ppl_em.explain(model, x))
        assert f"T={steps}" in text
        return lambda: 0.0

    return run


TASK = Task(
    what=f"the plan of an HMM with {K} states, one sequence of {T:,} steps, beside 1,000 steps",
    contenders={
        "ppl_em": Contender(partial(plans, T), same_algorithm=False),
        "1,000 steps": Contender(partial(plans, 1000), same_algorithm=False),
    },
    num_steps=(1, 3),
    threads=(1,),
    limit_seconds=2.0,
)
