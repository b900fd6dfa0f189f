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


def _one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise PlanError(message(f"unknown {name}", value=value, hint=", ".join(f'"{c}"' for c in choices)))


@dataclass(frozen=True)
class EM:
    """Settings of expectation–maximisation.

    Args:
        max_steps: evaluations of the EM map at most; 0 evaluates the objective at the start.
        tol: stop when the estimated remaining gain (Aitken's) is below this many nats; 0 runs all ``max_steps``.
        accelerate: extrapolate under a monotone guard: ``"squarem"`` (or True) or ``"daarem"`` (damped Anderson
            acceleration); False is plain EM.
        e_step: ``"exact"`` posterior weights, ``"hard"`` (the most probable joint assignment, classification EM),
            ``"map"`` (the same where the latents are discrete, their joint mode where they are continuous) or
            ``"sample"`` (one posterior draw, stochastic EM).
        anneal: inverse temperature in (0, 1) at which deterministic annealing of the starts begins; None anneals none.
        split_merge: whether moves that merge two states and split a third are made from the best optimum; None makes them
            where the number of starts is left to the method.
        m_step_steps: optimiser iterations for parameters without a closed form; 1 is the expected-gradient algorithm.
        m_step_optim: a function from parameters to a ``torch.optim.Optimizer`` for these parameters; None uses
            Newton's method or L-BFGS with a line search.
        globals: ``"point"`` (maximum a posteriori) for global continuous latents, or ``"variational"``: each gets its
            optimal conjugate factor, the objective is the bound on the log evidence (variational Bayes EM).
        map_space: the space in which these are most probable: ``"constrained"``, as the program draws them, or
            ``"unconstrained"``, in the coordinates of ``torch.distributions.biject_to``, where the Jacobian counts and
            the modes of Dirichlet, Beta and Gamma priors are always interior.
        variant: ``"batch"`` renews the expected statistics of all data at every step; ``"stepwise"`` (online EM) averages
            those of minibatches, with an M-step after each; ``"incremental"`` renews those of one part at a time.
        batch_size: data in a part, for tensors in memory; None takes a hundredth of them. A loader has its own batches.
        step_exponent: κ in (1/2, 1] of the step size (t + ``step_offset``)^−κ, for ``"stepwise"``.
        step_offset: see ``step_exponent``.
        warm_up: data that are seen before the first M-step of ``"stepwise"``; None takes ten for each free parameter.
        passes: times that ``"stepwise"`` goes through the data; ``max_steps`` ends it earlier.
        callback: called with the state after every step; may raise ``StopIteration`` to end the fit.
        engines: exact engines in order of preference; None uses ``ppl_em.ENGINES``.

    Example:
        >>> EM(max_steps=20, tol=0, accelerate=False).max_steps
        20
    """

    max_steps: int = 10_000
    tol: float = 1e-6
    accelerate: bool | Literal["squarem", "daarem"] = True
    e_step: Literal["exact", "hard", "map", "sample"] = "exact"
    anneal: float | None = None
    split_merge: bool | None = None
    m_step_steps: int = 10
    m_step_optim: Callable[[Any], Any] | None = None
    globals: Literal["point", "variational"] = "point"
    map_space: Literal["constrained", "unconstrained"] = "constrained"
    variant: Literal["batch", "stepwise", "incremental"] = "batch"
    batch_size: int | None = None
    step_exponent: float = 0.6
    step_offset: float = 0.0
    warm_up: int | None = None
    passes: int = 3
    callback: Callable[[Any], None] | None = None
    engines: tuple[Any, ...] | None = None

    def __post_init__(self) -> None:
        _one_of("map_space", self.map_space, ("constrained", "unconstrained"))
        _positive("max_steps", self.max_steps, zero=True)
        _positive("tol", self.tol, zero=True)
        if not isinstance(self.accelerate, bool):
            _one_of("accelerate", self.accelerate, ("squarem", "daarem"))
        _positive("m_step_steps", self.m_step_steps)
        if self.anneal is not None and not 0 < self.anneal <= 1:
            raise PlanError(message("anneal is an inverse temperature in (0, 1]", value=self.anneal, hint="0.2"))
        _one_of("variant", self.variant, ("batch", "stepwise", "incremental"))
        _positive("batch_size", self.batch_size)
        _positive("passes", self.passes)
        _positive("step_offset", self.step_offset, zero=True)
        _positive("warm_up", self.warm_up, zero=True)
        if not 0.5 < self.step_exponent <= 1:
            why = "the averages converge for exponents in (1/2, 1]"
            raise PlanError(message("unknown step_exponent", value=self.step_exponent, why=why, hint="0.6"))
        _one_of("e_step", self.e_step, ("exact", "hard", "map", "sample"))


@dataclass(frozen=True)
class SVI:
    """Settings of stochastic variational inference.

    Args:
        max_steps: gradient steps at most; 0 evaluates the bound at the start.
        lr: learning rate of the default optimiser (Adam).
        schedule: ``"cosine"`` lets the default optimiser's rate fall to zero over ``max_steps``; ``"constant"`` keeps it.
        optim: a function from parameters to a ``torch.optim.Optimizer``; None is Adam with ``lr``.
        loss: ``"elbo"``, or ``"iwae"`` with ``num_particles`` importance samples.
        num_particles: draws per datum and step.
        batch_size: data per step for tensors in memory; None uses all (or what the plate declares).
        covariance: of the automatic guide over the latents of one datum: ``"diagonal"`` or ``"full"``.
        globals: ``"point"`` (maximum a posteriori) or ``"mean-field"`` for global continuous latents; None is
            ``"mean-field"`` where SVI was asked for, ``"point"`` where it was chosen for the sake of local latents.
        hidden: widths of the automatic encoder's hidden layers.
        encoder: a module that maps observations to a distribution, in place of the automatic one.
        num_data: full number of data, where a loader does not tell.
        validation: fraction of the data held out for early stopping (0 for none), or held-out data: the model's
            arguments as a tuple, or a loader.
        patience: looks at the held-out bound without improvement before the fit stops.
        check_every: steps between two looks; None looks after every pass through the data, 100 steps apart at least.
        closed_form: parameters that admit a closed-form update get it, from statistics averaged over steps.
        evaluation_particles: draws per datum for the objective at the returned parameters.
        callback: called with the state after every step; may raise ``StopIteration`` to end the fit.

    Example:
        >>> SVI(max_steps=100, batch_size=32).lr
        0.001
    """

    max_steps: int = 5_000
    lr: float = 1e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    optim: Callable[[Any], Any] | None = None
    loss: Literal["elbo", "iwae"] = "elbo"
    num_particles: int = 1
    batch_size: int | None = None
    covariance: Literal["diagonal", "full"] = "diagonal"
    globals: Literal["point", "mean-field"] | None = None
    hidden: tuple[int, ...] = (128, 128)
    encoder: Any = None
    num_data: int | None = None
    validation: float | Any = 0.0
    patience: int = 10
    check_every: int | None = None
    closed_form: bool = True
    evaluation_particles: int = 16
    callback: Callable[[Any], None] | None = None

    def __post_init__(self) -> None:
        _positive("max_steps", self.max_steps, zero=True)
        for name in (
            "lr",
            "num_particles",
            "batch_size",
            "num_data",
            "patience",
            "check_every",
            "evaluation_particles",
        ):
            _positive(name, getattr(self, name))
        _one_of("schedule", self.schedule, ("cosine", "constant"))
        _one_of("loss", self.loss, ("elbo", "iwae"))
        _one_of("covariance", self.covariance, ("diagonal", "full"))
        if self.globals is not None:
            _one_of("globals", self.globals, ("point", "mean-field"))
        if isinstance(self.validation, float) and not 0.0 <= self.validation < 1.0:
            raise PlanError(message("the validation fraction must lie in [0, 1)", value=self.validation))


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
