"""Parameters that a program declares without a constraint, although what they feed has one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_em.ir import Link, Parameter, Site
from ppl_em.trace.enumeration import Enumeration
from ppl_em.trace.probing import Key, find_all_links

#: Strictest first: a parameter that feeds several arguments keeps within the strictest of their domains.
_ORDER = (constraints.simplex, constraints.unit_interval, constraints.positive)
#: Transforms that take positive numbers only.
_OF_POSITIVE = frozenset({"sqrt", "log", "rsqrt"})


def infer_domains(
    sites: Mapping[str, Site], parameters: Mapping[str, Parameter], enumeration: Enumeration
) -> tuple[dict[str, Parameter], tuple[str, ...]]:
    """Give bare parameters the domain of the argument that they are.

    Args:
        sites: sites with their arguments' sources.
        parameters: everything that is estimated.
        enumeration: runs the program.

    Returns:
        The parameters, and a note for each that got a domain.
    """
    bare = {
        n: p
        for n, p in parameters.items()
        if p.origin != "site" and p.constraint in (constraints.real, constraints.real_vector)
    }
    suspects = {
        n for s in sites.values() for a, v in s.arguments.items() if _domain(s, a) for n in v.sources if n in bare
    }
    if not suspects:
        return dict(parameters), ()
    nearby = {n: replace(p, constraint=_Near(p.init)) if n in suspects else p for n, p in parameters.items()}
    links, _ = find_all_links(sites, nearby, enumeration)
    found: dict[str, tuple[Any, str]] = {}
    for key, group in links.items():
        for link in group:
            if link.parameter in suspects:
                _note(found, link, key, sites[key[0]], parameters[link.parameter].init)
    result, notes = dict(parameters), []
    for name, (domain, what) in found.items():
        result[name] = replace(parameters[name], constraint=domain)
        kind = {constraints.simplex: "a probability vector", constraints.unit_interval: "between 0 and 1"}
        notes.append(
            f"parameter '{name}' is declared without a constraint; it is kept {kind.get(domain, 'positive')}, being {what}"
        )
    return result, tuple(notes)


def _note(found: dict[str, tuple[Any, str]], link: Link, key: Key, site: Site, init: Tensor) -> None:
    if link.offset is not None and bool((link.offset != 0).any()):
        return
    domain = constraints.positive if link.transform.name in _OF_POSITIVE else _domain(site, key[1])
    if domain is None or link.transform.name not in ("identity", "normalise", *_OF_POSITIVE):
        return
    if domain is constraints.simplex and not _sums_to_one(init):
        domain = constraints.positive  # the family normalises it
    if not bool(torch.as_tensor(domain.check(init)).all()):
        return
    before = found.get(link.parameter)
    if before is None or _ORDER.index(domain) < _ORDER.index(before[0]):
        family = "" if site.family is None else f" of {site.family.__name__}"
        found[link.parameter] = (domain, f"{key[1]}{family} at '{key[0]}'")


def _sums_to_one(init: Tensor) -> bool:
    return init.dim() > 0 and bool(((init.sum(-1) - 1).abs() < 1e-4).all())


def _domain(site: Site, argument: str) -> Any:
    """Domain of an argument, as one of the three that matter here; None for anything else."""
    declared = getattr(site.family, "arg_constraints", {})
    constraint = declared.get(argument) if isinstance(declared, Mapping) else None
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    if constraint in (constraints.positive, constraints.nonnegative):
        return constraints.positive
    if isinstance(constraint, (constraints.greater_than, constraints.greater_than_eq)):
        return constraints.positive if float(constraint.lower_bound) == 0 else None
    if constraint is constraints.unit_interval or constraint is constraints.simplex:
        return constraint
    return None


class _Near:
    """Stands for a constraint in probing: values close to the initial one, which the program accepts."""

    def __init__(self, init: Tensor) -> None:
        self.init = init

    def near(self, noise: Tensor) -> Tensor:
        return self.init * (1 + 1e-3 * noise.clamp(-3, 3))
