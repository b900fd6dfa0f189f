"""Discrete values observed for some elements only, on which other sites depend: latent where they are missing (NaN)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_em.errors import DataError, message
from ppl_em.ir import Program
from ppl_em.trace.footprint import GIVEN
from ppl_em.trace.record import Record

#: What a run marks that was computed from a value with holes.
MARK = "missing:"


class _Split(Messenger):
    """Observed sites with holes become two, as with ``obs_mask``: ``<name>_observed`` and ``<name>_unobserved``."""

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Any) -> None:
        name, value = msg["name"], msg["value"]
        if name not in self.names or not msg["is_observed"] or not isinstance(value, Tensor):
            return
        if not value.is_floating_point() or not bool(value.isnan().any()):
            return
        fn = (msg["infer"] or {}).get(GIVEN, msg["fn"])
        missing = value.isnan().flatten(value.dim() - fn.event_dim).any(-1) if fn.event_dim else value.isnan()
        with poutine.mask(mask=cast(Any, ~missing)):
            seen = pyro.sample(f"{name}_observed", fn, obs=value)
        with poutine.mask(mask=cast(Any, missing)):
            drawn = pyro.sample(f"{name}_unobserved", fn)
        wide = missing.reshape(missing.shape + (1,) * fn.event_dim)
        joined = torch.where(wide, drawn.to(value.dtype), seen)
        msg["fn"], msg["value"] = dist.Delta(joined, event_dim=fn.event_dim).mask(False), joined
        msg["infer"] = {"_deterministic": True}


class PartlyLabelled:
    """A program some of whose observed sites are latent where they are missing; called as the program itself.

    Args:
        model: the program.
        names: these sites.
    """

    def __init__(self, model: Any, names: frozenset[str]) -> None:
        self.model, self.names = model, names

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program."""
        with _Split(self.names):
            return self.model(*args, **kwargs)


def to_be_split(records: Mapping[str, Record]) -> frozenset[str]:
    """Discrete sites with holes on which others depend.

    Args:
        records: of a run in which provenance was followed.

    Raises:
        DataError: others depend on a continuous value with holes; both sites are named.
    """
    found = set()
    for name, record in records.items():
        marks = {m for m in record.marks | record.control if m.startswith(MARK)}
        for source in sorted(m.removeprefix(MARK) for m in marks):
            if source == name:
                continue
            if not getattr(records[source].fn.support, "is_discrete", False):
                why = f"site '{name}' is computed from it, so it would have to be integrated as a latent"
                hint = "leaving these data out, or filling them in"
                raise DataError(message("a missing value on which another depends", site=source, why=why, hint=hint))
            found.add(source)
    return frozenset(found)


def without_unseen(program: Program, records: Mapping[str, Record]) -> Program:
    """The program without the unobserved part of continuous sites (``obs_mask``) on which nothing depends.

    The density of such a part integrates to one, whatever its latents are.

    Args:
        program: the program.
        records: its sites, with their provenance.
    """
    fed = frozenset().union(*(r.marks | r.control for r in records.values()))
    unseen = {
        z
        for z, latent in program.latents.items()
        if latent.kind == "continuous"
        and latent.local
        and z.endswith("_unobserved")
        and z.removesuffix("_unobserved") + "_observed" in records
        and f"latent:{z}" not in fed
    }
    if not unseen:
        return program
    sites = {n: s for n, s in program.sites.items() if n not in unseen}
    latents = {z: v for z, v in program.latents.items() if z not in unseen}
    return replace(program, sites=sites, latents=latents)


def holed_arguments(args: Any) -> bool:
    """Whether any tensor in nested arguments holds NaN."""
    if isinstance(args, Tensor):
        return args.is_floating_point() and bool(args.isnan().any())
    if isinstance(args, Mapping):
        return any(holed_arguments(v) for v in args.values())
    return isinstance(args, (list, tuple)) and any(holed_arguments(v) for v in args)


def explained(error: Exception) -> DataError:
    """The failure of a program that does not expect holes in its data."""
    why = f"the program fails with data that hold NaN ({type(error).__name__}: {str(error).splitlines()[0]})"
    hint = "computing with what pyro.sample returns in place of the data themselves, or leaving these data out"
    return DataError(message("NaN reaches a place other than an observed value", why=why, hint=hint))
