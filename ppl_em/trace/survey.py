"""What a program consists of: the sites of its runs with drawn values, provenance followed, over all execution paths."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ppl_em.errors import PlanError, message
from ppl_em.ir import Latent
from ppl_em.trace.execution_paths import MAX_PATHS, Path, Paths
from ppl_em.trace.footprint import generator_states
from ppl_em.trace.layout import allocate
from ppl_em.trace.record import Record, Run
from ppl_em.trace.run import run_program

if TYPE_CHECKING:
    from ppl_em.trace.tracing import Source


class TooManyPaths(PlanError):
    """Python reads latents that have too many joint values."""


class Survey:
    """Sites of one or more runs of a program in which provenance was followed.

    Args:
        source: the program.
        values: constrained values of parameters that replace the program's own.

    Attributes:
        first: the first run.
        records: all sites met so far in program order, marks of all runs together.
        escaped: latents whose values Python reads, and through which call.
        parameters: parameters met.
        other_randomness: what the first run drew from generators that are not PyTorch's.
    """

    def __init__(self, source: Source, values: Mapping[str, Tensor] | None) -> None:
        self.source, self.values = source, values
        states = generator_states()
        self.first = self._first()
        used = [name for name, state in generator_states().items() if state != states[name]]
        self.other_randomness = tuple(f"the program draws random numbers from {name}" for name in used)
        self.records = dict(self.first.records)
        self.parameters = dict(self.first.parameters)
        self.escaped: dict[str, str] = {}
        self._runs = 1
        self._appearances = dict.fromkeys(self.records, 1)
        self._seen: set[tuple[tuple[str, int], ...]] = set()
        self._note_escapes(self.first)

    def _first(self) -> Run:
        try:
            return self._run(lambda name, fn: None, compact=True)
        except Exception:  # not vectorised over its plates
            return self._run(lambda name, fn: None)

    def _run(self, assign: Any, compact: bool = False) -> Run:
        return run_program(
            self.source.model,
            self.source.args,
            self.source.kwargs,
            assign=assign,
            parameters=self.values,
            follow=True,
            keep_subsamples=self.source.batch,
            time=self.source.time,
            compact=compact,
        )

    def _note_escapes(self, run: Run) -> None:
        assert run.provenance is not None
        for mark, call in run.provenance.escaped.items():
            if mark.startswith("latent:"):
                self.escaped.setdefault(mark[7:], call)

    @property
    def optional(self) -> frozenset[str]:
        """Sites that some execution paths do not reach."""
        return frozenset(n for n, count in self._appearances.items() if count < self._runs)

    def steering(self, summed: Mapping[str, Latent]) -> frozenset[str]:
        """Summed latents whose values Python reads."""
        return frozenset(self.escaped) & frozenset(summed)

    def scopes(
        self, summed: Mapping[str, Latent], by_path: Collection[str], coupled: Mapping[str, tuple[str, ...]]
    ) -> dict[str, tuple[str, ...]]:
        """Summed latents on which each site depends: through tensors, or through control flow.

        Args:
            summed: discrete latents.
            by_path: those whose values Python may have read.
            coupled: discrete latents on which a draw of a continuous latent depends.
        """
        result = {}
        for name, record in self.records.items():
            found = {m[7:] for m in record.marks if m.startswith("latent:")}
            found.update(z for u in tuple(found) for z in coupled.get(u, ()))
            if record.role == "latent":
                found.add(name)
            for mark in record.control:
                z = mark[7:]
                if mark.startswith("latent:") and z in by_path and not record.independent_of(self.records[z]):
                    found.add(z)
            result[name] = tuple(z for z in summed if z in found)
        return result

    def explore(self, by_path: Collection[str], summed: Mapping[str, Latent]) -> bool:
        """Run every execution path; new sites, marks and escapes are added.

        Args:
            by_path: latents that take one value per run.
            summed: all summed latents that are known.

        Returns:
            Whether anything new was met.

        Raises:
            TooManyPaths: there are more than :data:`MAX_PATHS`.
        """
        latents = {z: v for z, v in summed.items() if z in by_path}
        scopes = {n: tuple(z for z in s if z in latents) for n, s in self.scopes(summed, by_path, {}).items()}
        cardinality = {z: v.cardinality for z, v in latents.items()}
        layout = allocate(self.records, scopes, cardinality, {z: v.folded for z, v in latents.items() if v.folded})
        paths = Paths(layout, latents, scopes, summed, self.records)
        if paths.count > MAX_PATHS:
            raise self._too_many(latents, paths)
        before = self._extent()
        for _, path in paths:
            key = tuple(sorted(path.items()))
            if key not in self._seen:
                self._seen.add(key)
                self._absorb(self._run(lambda name, fn, path=path: _value(name, fn, path, latents)))
        return before != self._extent()

    def _extent(self) -> tuple[int, ...]:
        marks = sum(len(r.marks) + len(r.control) for r in self.records.values())
        return len(self.records), len(self.escaped), len(self.optional), marks

    def _too_many(self, latents: Mapping[str, Latent], paths: Paths) -> TooManyPaths:
        name = next((z for z in latents if z in self.escaped), next(iter(latents)))
        call = self.escaped.get(name)
        through = f" (through {call})" if call else ""
        return TooManyPaths(
            message(
                f"Python reads the value of a latent that is to be summed{through}",
                site=name,
                value=", ".join(latents),
                why=f"there are {paths.count:.3g} execution paths, at most {MAX_PATHS} are enumerated",
                hint="torch.where or indexing in place of if / float() / .item(), or pyro.plate / pyro.markov around "
                "loops whose turns are independent",
            )
        )

    def _absorb(self, run: Run) -> None:
        self._note_escapes(run)
        self._runs += 1
        for name in run.records:
            self._appearances[name] = self._appearances.get(name, 0) + 1
        for name, seen in run.parameters.items():
            self.parameters.setdefault(name, seen)
        order = list(self.records)
        place = -1
        for name, record in run.records.items():
            known = self.records.get(name)
            if known is None:
                place += 1
                order.insert(place, name)
                self.records[name] = record
            else:
                place = max(place, order.index(name))
                _add_marks(known, record)
        self.records = {n: self.records[n] for n in order}


def _value(name: str, fn: Any, path: Path, latents: Mapping[str, Latent]) -> Tensor | None:
    if name not in path:
        return None
    values = latents[name].values
    value = values[min(path[name], len(values) - 1)]
    return value.expand(tuple(fn.batch_shape) + tuple(fn.event_shape))


def _add_marks(record: Record, other: Record) -> None:
    record.marks |= other.marks
    record.control |= other.control
    record.value_marks |= other.value_marks
    for argument, marks in other.argument_marks.items():
        record.argument_marks[argument] = record.argument_marks.get(argument, frozenset()) | marks
