"""The automatic guide of a program, for use with Pyro itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ppl_em.arguments import as_tensors
from ppl_em.svi.automatic import AutomaticGuide
from ppl_em.trace.tracing import Source, trace_program


def guide_for(
    model: Any,
    *args: Any,
    covariance: str = "diagonal",
    hidden: Sequence[int] = (128, 128),
    encoder: nn.Module | None = None,
    globals: str = "mean-field",
    model_kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> AutomaticGuide:
    """An amortised guide built from a program: an ordinary Pyro guide for ``pyro.infer.SVI`` and ``Predictive``.

    Args:
        model: any Pyro callable.
        args: its arguments; their observations set the standardisation of the encoder's inputs.
        covariance: ``"diagonal"`` or ``"full"`` over the latents of one datum.
        hidden: widths of the encoder's hidden layers.
        encoder: a module in place of the automatic encoder, see :class:`ppl_em.SVI`.
        globals: ``"mean-field"`` gives global continuous latents a distribution, ``"point"`` leaves them out.
        model_kwargs: keyword arguments of the model.
        seed: of the networks' initial weights.

    Returns:
        A ``PyroModule`` with the model's arguments. Discrete latents are left to the model, to be summed.

    Raises:
        ModelError: the program cannot be read, or a latent's support is unknown.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z.sin(), 0.1), obs=x)
        >>> guide = guide_for(model, torch.zeros(4))
        >>> guide(torch.zeros(7))["z"].shape
        torch.Size([7])
    """
    source = Source(model, as_tensors(args), as_tensors(dict(model_kwargs or {})), seed, time=None)
    program = trace_program(source, witness=False, strict=False)
    points = frozenset(n for n, p in program.parameters.items() if p.origin == "site")
    if points and globals == "mean-field":
        program = trace_program(source, witness=False, strict=False, variational=points)
    return AutomaticGuide(program, source, covariance=covariance, hidden=hidden, encoder=encoder)
