"""The E-step of one sequence over two decades of its length: time must be linear in it."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.task import Contender, Finish, Run, Task
from benchmarks.tasks.hmm_long import K, data

SIZES = {"ppl_em": 1_000_000, "100,000 steps": 100_000, "10,000 steps": 10_000}


def ours(steps: int) -> Run:
    """All expected counts and log Z, again and again in the same memory."""
    from ppl_em.exact.chain_buffers import ChainBuffers
    from ppl_em.exact.forward_backward import expected_counts

    values, start = data(steps)
    init, trans, emission = (torch.as_tensor(start[name]).log() for name in ("initial", "transition", "emission"))
    obs, buffers = emission[:, torch.as_tensor(values)].T.contiguous(), ChainBuffers()

    def run(num_steps: int) -> Finish:
        for _ in range(num_steps):
            log_z = expected_counts(init, trans, obs, buffers=buffers).log_z
        return lambda: float(log_z)

    return run


TASK = Task(
    what=f"E-step of an HMM with {K} states, one sequence of {', '.join(f'{n:,}' for n in SIZES.values())} steps",
    contenders={name: Contender(partial(ours, steps), same_algorithm=False) for name, steps in SIZES.items()},
    num_steps=(1, 5),
    sizes=SIZES,
)
