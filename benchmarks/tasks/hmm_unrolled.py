"""The batch of hidden Markov models as an unrolled loop in `pyro.markov`, against Pyro's TraceEnum_ELBO.

The same program runs under both; Pyro needs it annotated for enumeration. One step of Pyro's is one gradient
step, which does less than a step of EM.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from benchmarks.contenders import plain_em
from benchmarks.task import Contender, Finish, Run, Target, Task
from benchmarks.tasks.hmm_batch import K, N, T, V, data


def model(x: torch.Tensor) -> None:
    """The HMM as a Pyro program, unrolled over time; x of shape (N, T)."""
    initial = pyro.param("initial", torch.ones(K) / K, constraint=constraints.simplex)
    transition = pyro.param("transition", torch.ones(K, K) / K, constraint=constraints.simplex)
    emission = pyro.param("emission", torch.ones(K, V) / V, constraint=constraints.simplex)
    with pyro.plate("sequences", len(x)):
        z = None
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(initial if z is None else transition[z]))
            pyro.sample(f"x_{t}", dist.Categorical(emission[z]), obs=x[:, t])


def ours() -> Run:
    """The program above, fitted by plain EM."""
    x, _, start = data()
    return plain_em(model, (x,), start)


def trace_enum() -> Run:
    """The program above under Pyro's SVI with exact enumeration and Adam."""
    from pyro.infer import SVI, TraceEnum_ELBO, config_enumerate
    from pyro.optim import Adam

    arrays, _, start = data()
    x = torch.as_tensor(arrays)
    enumerated = config_enumerate(model)

    def guide(x: torch.Tensor) -> None:
        pass

    def run(num_steps: int) -> Finish:
        pyro.clear_param_store()
        for name, value in start.items():
            pyro.param(name, torch.as_tensor(value).clone(), constraint=constraints.simplex)
        svi = SVI(enumerated, guide, Adam({"lr": 0.01}), TraceEnum_ELBO(max_plate_nesting=1))
        for _ in range(num_steps):
            svi.step(x)
        return lambda: -float(svi.evaluate_loss(x))

    return run


TASK = Task(
    what=f"HMM with {K} states and {V} symbols, {N:,} sequences of {T} steps, unrolled",
    contenders={
        "ppl_em": Contender(ours),
        "TraceEnum_ELBO": Contender(trace_enum, same_algorithm=False, num_steps=(1, 2)),
    },
    num_steps=(2, 22),
    max_repeats=3,
    target=Target("TraceEnum_ELBO", 0.03),
)
