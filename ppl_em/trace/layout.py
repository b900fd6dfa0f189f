"""From positional to named dimensions: which tensor dimension of an enumerated run is which latent or plate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ppl_em.errors import PlanError, message
from ppl_em.ir import Factor
from ppl_em.trace.record import Frame, Record

#: torch refuses tensors of more dimensions.
MAX_DIMS = 64


class Disagreement(PlanError):
    """What a site shows in one kind of run contradicts what it shows in another.

    Args:
        text: the message.
        site: its name.
    """

    def __init__(self, text: str, site: str) -> None:
        super().__init__(text)
        self.site = site


@dataclass(frozen=True)
class Layout:
    """Enumeration dimensions as registers, left of every static batch dimension.

    Two latents share a register if no site depends on both (and they have the same number of values): graph
    colouring, so that a loop of any length needs as many dimensions as it is wide.

    Args:
        static: number of rightmost dimensions that plates and undeclared batch shapes use.
        register: register of each enumerated latent.
        batches: name of the undeclared batch plate by (latent, position), position counted from the right, negative.
        folded: number of rightmost batch dimensions of a latent whose elements are enumerated jointly.
    """

    static: int
    register: Mapping[str, int]
    batches: Mapping[tuple[str, int], str]
    folded: Mapping[str, int] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """Number of registers."""
        return 1 + max(self.register.values(), default=-1)

    def position(self, latent: str) -> int:
        """Dimension (negative) at which a latent is enumerated."""
        return -1 - self.static - self.register[latent]

    def enumerated(self, latent: str, support: Tensor) -> Tensor:
        """A latent's support (K, *folded, *event) shaped so that K stands at its register."""
        gap = -self.position(latent) - 1 - self.folded.get(latent, 0)
        return support.reshape((support.shape[0],) + (1,) * gap + tuple(support.shape[1:]))

    def name_dims(self, record: Record, tensor: Tensor, event_dim: int, inner: int, scope: Iterable[str]) -> Factor:
        """Name the batch dimensions of a tensor that belongs to a site.

        Args:
            record: the site.
            tensor: (..., *event) with batch dimensions as in the run.
            event_dim: number of event dimensions of ``tensor``.
            inner: number of rightmost batch dimensions that are part of the site's event.
            scope: latents on which the site depends.
        """
        count = tensor.dim() - event_dim
        plates = plate_dims(record.frames)
        in_register = {self.register[z]: z for z in scope if z in self.register}
        names: list[str | None] = []
        for axis in range(count):
            position = axis - count
            if tensor.shape[axis] == 1:
                names.append(None)
            elif position >= -inner:
                names.append(f"{record.name}_dim_{inner + position}")
            else:
                names.append(self._name(record, position + inner, plates, in_register, scope))
        index = tuple(0 if n is None else slice(None) for n in names)
        return Factor(tensor[index], tuple(n for n in names if n is not None))

    def _name(
        self,
        record: Record,
        position: int,
        plates: Mapping[int, str],
        in_register: Mapping[int, str],
        scope: Iterable[str],
    ) -> str:
        if position >= -self.static:
            if position >= -self.folded.get(record.name, 0):
                return f"{record.name}_dim_{position}"
            if position in plates:
                return plates[position]
            for latent in (record.name, *scope):
                if (latent, position) in self.batches:
                    return self.batches[latent, position]
            return f"{record.name}_batch_{-position}"
        register = -position - self.static - 1
        if register not in in_register:
            raise Disagreement(
                message(
                    "the site's density varies over a latent on which the program's operations do not seem to depend",
                    site=record.name,
                    why="tensor provenance and the shape of the enumerated run disagree",
                    hint="making the dependence explicit in torch operations",
                ),
                record.name,
            )
        return in_register[register]


def plate_dims(frames: Iterable[Frame]) -> dict[int, str]:
    """Plate names by dimension (negative)."""
    return {f.dim: f.name for f in frames if f.dim is not None}


def batch_rank(record: Record) -> int:
    """Number of batch dimensions of a site, those of its value included."""
    event = getattr(record.fn, "event_dim", 0)
    return max(
        len(getattr(record.fn, "batch_shape", ())),
        record.value.dim() - event,
        *(-f.dim for f in record.frames if f.dim),
        0,
    )


def allocate(
    records: Mapping[str, Record],
    scopes: Mapping[str, tuple[str, ...]],
    cardinality: Mapping[str, int],
    folded: Mapping[str, int] | None = None,
) -> Layout:
    """Colour the interference graph of the enumerated latents.

    Args:
        records: sites of a run with drawn latents.
        scopes: latents on which each site depends, a latent's own site included.
        cardinality: number of values of each latent to be enumerated.
        folded: number of rightmost batch dimensions of a latent whose elements are enumerated jointly.

    Raises:
        PlanError: more dimensions would be needed than torch has.
    """
    static = max((batch_rank(r) for r in records.values()), default=0)
    clashes: dict[str, set[str]] = {z: set() for z in cardinality}
    for scope in scopes.values():
        members = [z for z in scope if z in cardinality]
        for z in members:
            clashes[z].update(members)
    register: dict[str, int] = {}
    size_of: dict[int, int] = {}
    for z, size in cardinality.items():
        taken = {register[other] for other in clashes[z] if other in register}
        colour = next(c for c in range(len(cardinality) + 1) if c not in taken and size_of.get(c, size) == size)
        register[z], size_of[colour] = colour, size
    deepest = max((r.value.dim() - batch_rank(r) for r in records.values()), default=0)
    if static + len(size_of) + max(deepest, 0) + 2 > MAX_DIMS:
        widest = max(scopes.items(), key=lambda item: len(item[1]))
        raise PlanError(
            message(
                f"enumeration needs {len(size_of)} tensor dimensions at once, torch has {MAX_DIMS}",
                site=widest[0],
                value=f"depends on {len(widest[1])} latents",
                hint='method="svi", or a program whose sites depend on fewer latents each',
            )
        )
    folded = dict(folded or {})
    return Layout(static, register, _batches(records, cardinality, folded), folded)


def _batches(
    records: Mapping[str, Record], cardinality: Mapping[str, int], folded: Mapping[str, int]
) -> dict[tuple[str, int], str]:
    names: dict[tuple[str, int], str] = {}
    for z in cardinality:
        record = records[z]
        shape = record.fn.batch_shape
        plates = plate_dims(record.frames)
        for axis, size in enumerate(shape):
            position = axis - len(shape)
            if size > 1 and position not in plates and position < -folded.get(z, 0):
                names[z, position] = f"_batch_{-position}_{size}"
    return names
