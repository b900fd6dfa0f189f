"""A ragged hidden Markov model with many Bernoulli outputs, against Pyro's TraceEnum_ELBO.

The same program runs under both; Pyro needs it annotated for enumeration. One step of Pyro's is one gradient
step, which does less than a step of EM.
"""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from benchmarks.contenders import plain_em
from benchmarks.task import Contender, Finish, Run, Task

N, T, K, D = 200, 100, 16, 51


def data() -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Draws padded sequences (N, T, D) of zeros and ones, their lengths (N,), and a start for EM."""
    rng = np.random.default_rng(0)
    x = torch.as_tensor((rng.random((N, T, D)) < 0.15).astype(float))
    lengths = torch.as_tensor(rng.integers(T // 4, T + 1, size=N))
    start = {
        "initial": np.full(K, 1 / K),
        "transition": 0.5 * np.eye(K) + 0.5 / K,
        "emission": rng.uniform(0.05, 0.3, (K, D)),
    }
    return x, lengths, {name: torch.as_tensor(value) for name, value in start.items()}


def model(x: torch.Tensor, lengths: torch.Tensor) -> None:
    """The HMM as a Pyro program; x of shape (N, T, D), of which sequence n holds lengths[n] steps."""
    initial = pyro.param("initial", torch.ones(K) / K, constraint=constraints.simplex)
    transition = pyro.param("transition", torch.ones(K, K) / K, constraint=constraints.simplex)
    emission = pyro.param("emission", torch.full((K, D), 0.5), constraint=constraints.unit_interval)
    with pyro.plate("sequences", len(x)):
        z = None
        for t in pyro.markov(range(x.shape[1])):
            with pyro.poutine.mask(mask=t < lengths):
                z = pyro.sample(f"z_{t}", dist.Categorical(initial if z is None else transition[z]))
                pyro.sample(f"x_{t}", dist.Bernoulli(emission[z]).to_event(1), obs=x[:, t])


def ours() -> Run:
    """The program above, fitted by plain EM."""
    x, lengths, start = data()
    return plain_em(model, (x, lengths), start)


def trace_enum() -> Run:
    """The program above under Pyro's SVI with exact enumeration and Adam."""
    from pyro.infer import SVI, TraceEnum_ELBO, config_enumerate
    from pyro.optim import Adam

    x, lengths, init = data()
    enumerated = config_enumerate(model)

    def guide(x: torch.Tensor, lengths: torch.Tensor) -> None:
        pass

    def run(num_steps: int) -> Finish:
        pyro.clear_param_store()
        pyro.param("initial", init["initial"].clone(), constraint=constraints.simplex)
        pyro.param("transition", init["transition"].clone(), constraint=constraints.simplex)
        pyro.param("emission", init["emission"].clone(), constraint=constraints.unit_interval)
        svi = SVI(enumerated, guide, Adam({"lr": 0.01}), TraceEnum_ELBO(max_plate_nesting=1))
        for _ in range(num_steps):
            svi.step(x, lengths)
        return lambda: -float(svi.evaluate_loss(x, lengths))

    return run


TASK = Task(
    what=f"ragged HMM, {N} sequences of up to {T} steps, {K} states, {D} Bernoulli outputs",
    contenders={
        "ppl_em": Contender(ours),
        "TraceEnum_ELBO": Contender(trace_enum, same_algorithm=False, num_steps=(1, 3)),
    },
    num_steps=(2, 52),
    max_repeats=5,
)
