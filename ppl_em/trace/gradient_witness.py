"""Parameters that feed a site though provenance lost their trace: they stand in the density's derivative.

Provenance follows torch operations on marked tensors; writing in place into a fresh tensor, or a value class that keeps
its own buffers, can lose the mark. The graph of derivatives does not lose it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from ppl_em.ir import Parameter, Site
from ppl_em.trace.enumeration import Enumeration
from ppl_em.trace.footprint import isolated


def fed_by_derivative(
    sites: Mapping[str, Site], parameters: Mapping[str, Parameter], enumeration: Enumeration
) -> dict[str, Site]:
    """Sites with the parameters added that what their distribution holds can be differentiated by.

    Args:
        sites: as provenance knows them.
        parameters: everything that is estimated.
        enumeration: runs the program.
    """
    leaves, names = {}, {}
    for name, parameter in parameters.items():
        leaf = parameter.module_tensor
        if leaf is None:
            leaf = parameter.init.detach().clone()
            leaf = leaf.requires_grad_() if leaf.is_floating_point() else leaf
        leaves[name], names[id(leaf)] = leaf, name
    try:
        with isolated(enumeration.source.seed), warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            records = enumeration.run(leaves)
    except Exception:  # what cannot be run this way is known by its provenance alone
        return dict(sites)
    found = {}
    for name, site in sites.items():
        record = records[name]
        own = {} if record.peeled is None else record.peeled.arguments
        tensors = {n: own[n] for n in site.arguments if n in own}
        found[name] = (
            _reached(_held([record.fn, record.value, record.mask]), names),
            {n: _reached([t], names) for n, t in tensors.items()},
        )
    result = {}
    for name, site in sites.items():
        fed, by_argument = found[name]
        arguments = {
            n: replace(a, sources=a.sources | by_argument.get(n, frozenset())) for n, a in site.arguments.items()
        }
        result[name] = replace(site, parameters=site.parameters | fed, arguments=arguments)
    return result


def _held(things: list[Any]) -> list[Tensor]:
    """All tensors that distributions hold, whatever holds them: no density need be evaluated."""
    found, seen, queue = [], set(), list(things)
    while queue:
        thing = queue.pop()
        if isinstance(thing, Tensor):
            found.append(thing)
        elif isinstance(thing, (list, tuple)):
            queue.extend(thing)
        elif isinstance(thing, Mapping):
            queue.extend(thing.values())
        elif isinstance(thing, torch.nn.Module):
            queue.extend(thing.parameters())
        elif hasattr(thing, "__dict__") and not isinstance(thing, (type, FunctionType)) and id(thing) not in seen:
            seen.add(id(thing))
            queue.extend(vars(thing).values())
    return found


def _reached(tensors: list[Tensor], names: Mapping[int, str]) -> frozenset[str]:
    """Names of the leaves in the graphs of some tensors."""
    found = {names[id(t)] for t in tensors if id(t) in names}
    queue = [t.grad_fn for t in tensors if t.grad_fn is not None]
    seen = set(queue)
    while queue:
        node = queue.pop()
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) in names:
            found.add(names[id(leaf)])
        for onward, _ in node.next_functions:
            if onward is not None and onward not in seen:
                seen.add(onward)
                queue.append(onward)
    return frozenset(found)
