"""Random programs with the truth about them, found by plain Pyro one joint assignment at a time."""

from __future__ import annotations

from functools import lru_cache

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import transform_to

import ppl_em
from ppl_em.plan.plan import Plan
from ppl_em.testing import RandomProgram, random_program
from tests.styles.oracle import Truth, enumerate_program

SEEDS = st.integers(0, 2**31 - 1)
ASSIGNMENTS = 64


def program_of(seed: int, *, local: bool = False) -> RandomProgram:
    return random_program(seed, max_assignments=ASSIGNMENTS, local=local)


def plan_of(program: RandomProgram, **options: object) -> Plan:
    return ppl_em.explain(program, program.data, method=ppl_em.EM(**options))  # type: ignore[arg-type]


def values_of(program: RandomProgram, seed: int) -> dict[str, Tensor]:
    """Valid parameters that have nothing to do with the program's own."""
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for name, table in program.tables.items():
        transform = transform_to(table.constraint)
        free = transform.inv(table.init)
        values[name] = transform(torch.randn(free.shape, generator=generator))
    return values


def truth_of(program: RandomProgram, values: dict[str, Tensor]) -> Truth:
    with torch.set_grad_enabled(any(v.requires_grad for v in values.values())):
        return enumerate_program(program, (program.data,), values)


@lru_cache(maxsize=4)
def posed(seed: int) -> tuple[RandomProgram, Plan, dict[str, Tensor]]:
    """A program, its plan, and parameters that the plan was not made at."""
    program = program_of(seed)
    return program, plan_of(program), values_of(program, seed)


def probabilities(distribution: torch.distributions.Distribution) -> Tensor:
    """(*plates, K) of a marginal."""
    probs = distribution.probs  # type: ignore[attr-defined]
    return (
        torch.stack([1 - probs, probs], -1) if not hasattr(distribution, "logits") or _binary(distribution) else probs
    )


def _binary(distribution: torch.distributions.Distribution) -> bool:
    return isinstance(distribution, torch.distributions.Bernoulli)
