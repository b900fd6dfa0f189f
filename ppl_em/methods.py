"""Settings of the algorithms: objects that a user passes as ``method=``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from ppl_em.errors import PlanError, message


def _positive(name: str, value: float | None, *, zero: bool = False) -> None:
    if value is None:
        return
    if not value > 0 and not (zero and value == 0):
        raise PlanError(message(f"{name} must be {'non-negative' if zero else 'positive'}", value=value))


@dataclass(frozen=True)
class EM:
    """Settings of expectation–maximisation.

    Args:
        max_steps: evaluations of the EM map at most; 0 evaluates the objective at the start.
        tol: stop when the estimated remaining gain (Aitken's) is below this many nats; 0 runs all ``max_steps``.
        accelerate: extrapolate with SQUAREM under a monotone guard; False is plain EM.
        e_step: ``"exact"`` posterior weights, ``"hard"`` (the most probable assignment, classification EM) or
            ``"sample"`` (one posterior draw, stochastic EM).
        m_step_steps: optimiser iterations for parameters without a closed form; 1 is the expected-gradient algorithm.
        m_step_optim: a function from parameters to a ``torch.optim.Optimizer`` for these parameters; None uses
            Newton's method or L-BFGS with a line search.
        globals: ``"point"`` (maximum a posteriori) for global continuous latents.
        callback: called with the state after every step; may raise ``StopIteration`` to end the fit.
        engines: exact engines in order of preference; None uses ``ppl_em.ENGINES``.

    Example:
        >>> EM(max_steps=20, tol=0, accelerate=False).max_steps
        20
    """

    max_steps: int = 10_000
    tol: float = 1e-6
    accelerate: bool = True
    e_step: Literal["exact", "hard", "sample"] = "exact"
    m_step_steps: int = 10
    m_step_optim: Callable[[Any], Any] | None = None
    globals: Literal["point", "variational"] = "point"
    callback: Callable[[Any], None] | None = None
    engines: tuple[Any, ...] | None = None

    def __post_init__(self) -> None:
        _positive("max_steps", self.max_steps, zero=True)
        _positive("tol", self.tol, zero=True)
        _positive("m_step_steps", self.m_step_steps)
        if self.e_step not in ("exact", "hard", "sample"):
            raise PlanError(message("unknown e_step", value=self.e_step, hint='"exact", "hard" or "sample"'))


@dataclass(frozen=True)
class SVI:
    """Settings of stochastic variational inference.

    Args:
        max_steps: gradient steps at most.
        lr: learning rate of the default optimiser (Adam).
        optim: a function from parameters to a ``torch.optim.Optimizer``; None is Adam with ``lr``.
        loss: ``"elbo"`` or ``"iwae"``.
        num_particles: draws per datum and step.
        batch_size: data per step for tensors in memory; None uses all.
        encoder: a module that maps observations to a distribution, in place of the automatic one.
        num_data: full number of data, where a loader does not tell.
        validation: fraction of the data held out for early stopping (0 for none).
        callback: called with the state after every step.
    """

    max_steps: int = 5_000
    lr: float = 1e-3
    optim: Callable[[Any], Any] | None = None
    loss: Literal["elbo", "iwae"] = "elbo"
    num_particles: int = 1
    batch_size: int | None = None
    encoder: Any = None
    num_data: int | None = None
    validation: float | Any = 0.0
    callback: Callable[[Any], None] | None = None

    def __post_init__(self) -> None:
        _positive("max_steps", self.max_steps, zero=True)
        _positive("lr", self.lr)
        _positive("num_particles", self.num_particles)


@dataclass(frozen=True)
class Auto:
    """The dispatcher's settings: the strongest method that the program admits within a budget.

    Args:
        em, svi: settings of the two algorithms.
        memory_bytes: memory that an E-step may use; None takes a quarter of the machine's.
        max_flops: operations that one E-step may cost.
    """

    em: EM = field(default_factory=EM)
    svi: SVI = field(default_factory=SVI)
    memory_bytes: float | None = None
    max_flops: float = 1e12
