"""How discrete latents are enumerated: all values at once where that works, else path by path, else jointly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from ppl_em.errors import PlanError
from ppl_em.ir import Program
from ppl_em.trace.assembling import Coupled
from ppl_em.trace.classify import is_discrete
from ppl_em.trace.enumeration import NotEnumerable, Outgrown
from ppl_em.trace.layout import Disagreement
from ppl_em.trace.survey import Survey

#: Ways that are tried at most.
MAX_ATTEMPTS = 10


@dataclass(frozen=True)
class Treatment:
    """One way of enumerating a program's latents.

    Args:
        by_path: latents that take one value per run, besides those that Python reads.
        folded: number of rightmost batch dimensions whose elements are enumerated jointly, by latent.
        bounds: number of values, where that depends on other latents.
    """

    by_path: frozenset[str] = frozenset()
    folded: Mapping[str, int] = field(default_factory=dict)
    bounds: Mapping[str, int] = field(default_factory=dict)

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for equal treatments."""
        return (self.by_path, tuple(sorted(self.folded.items())), tuple(sorted(self.bounds.items())))


def first_that_works(attempt: Callable[[Treatment], Program], survey: Survey) -> Program:
    """Try ways of enumeration, the cheapest first, until one is found whose replays agree with the program.

    Args:
        attempt: traces the program in one way, witnesses included.
        survey: the program's sites.

    Raises:
        PlanError: that of the first way, if none works.
    """
    tried: set[tuple[object, ...]] = set()

    def search(way: Treatment) -> Program:
        tried.add(way.key)
        try:
            return attempt(way)
        except Outgrown as grown:
            if len(tried) >= MAX_ATTEMPTS:
                raise
            return search(replace(way, bounds={**way.bounds, grown.latent: grown.cardinality}))
        except (NotEnumerable, Coupled, Disagreement) as error:
            for other in _alternatives(error, way, survey):
                if other.key not in tried and len(tried) < MAX_ATTEMPTS:
                    try:
                        return search(other)
                    except PlanError:
                        continue
            raise

    return search(Treatment())


def _alternatives(error: PlanError, way: Treatment, survey: Survey) -> Iterator[Treatment]:
    """Ways that may mend a failure, the cheapest first."""
    discrete = {n: r for n, r in survey.records.items() if r.role == "latent" and is_discrete(r.fn)}
    if isinstance(error, Coupled):
        yield replace(way, folded={**way.folded, **error.latents})
        return
    if isinstance(error, NotEnumerable):
        yield replace(way, by_path=frozenset(discrete))
        return
    assert isinstance(error, Disagreement)
    scope = survey.scopes(dict.fromkeys(discrete), way.by_path | set(survey.escaped), {})[error.site]  # type: ignore[arg-type]
    if set(scope) - way.by_path:
        yield replace(way, by_path=way.by_path | set(scope))
    wide = {z: len(discrete[z].fn.batch_shape) for z in scope if any(n > 1 for n in discrete[z].fn.batch_shape)}
    wide = {z: rank for z, rank in wide.items() if z not in way.folded}
    if wide:
        yield replace(way, by_path=frozenset(), folded={**way.folded, **wide})
        yield replace(way, by_path=way.by_path | set(scope), folded={**way.folded, **wide})
