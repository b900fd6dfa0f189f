"""Tensors that would silently never be trained."""

from __future__ import annotations

import warnings
from typing import Any

import pyro
import torch
from torch import Tensor

from ppl_em.trace.recorder import distribution_tensors
from ppl_em.trace.run import Run


def warn_unregistered(run: Run, model: Any) -> None:
    """Warn about tensors that require gradients and feed a site, but are registered neither with Pyro nor as a module."""
    known = {id(p) for p in pyro.get_param_store()._params.values()}
    known |= {id(seen.value) for seen in run.parameters.values()}
    known |= {id(getattr(seen.value, "unconstrained", lambda: None)()) for seen in run.parameters.values()}
    for record in run.records.values():
        for leaf in _leaves(distribution_tensors(record.fn)):
            if id(leaf) not in known:
                known.add(id(leaf))
                warnings.warn(
                    f"a tensor of shape {tuple(leaf.shape)} that requires gradients feeds site '{record.name}' but is "
                    "registered nowhere: it will not be trained. Use pyro.param, pyro.module or a PyroModule.",
                    UserWarning,
                    stacklevel=4,
                )


def _leaves(tensors: list[Tensor]) -> list[Tensor]:
    found: list[Tensor] = []
    seen: set[Any] = set()
    queue: list[Any] = []
    for tensor in tensors:
        if tensor.grad_fn is not None:
            queue.append(tensor.grad_fn)
        elif tensor.requires_grad:
            found.append(tensor)
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        queue.extend(next_node for next_node, _ in node.next_functions)
    return [t for t in found if isinstance(t, torch.Tensor)]
