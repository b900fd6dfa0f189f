"""Which parameter elements are which distribution arguments: found by value and by derivative at random parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ppl_em.ir import Factor, Link
from ppl_em.ir.transform import ELEMENTWISE, IDENTITY, MATRIXWISE, ROWWISE, STICK_BREAKING, Transform

#: Families that normalise the rows of these arguments themselves.
NORMALISED = frozenset({"Categorical", "OneHotCategorical", "OneHotCategoricalStraightThrough", "Multinomial"})


def normalises(family: type, argument: str) -> bool:
    """Whether a family divides the rows of an argument by their sums itself."""
    return family.__name__ in NORMALISED or argument in getattr(family, "probability_rows", ())


@dataclass(frozen=True)
class Probe:
    """An argument and the parameters at one random setting, with the derivative that torch computed.

    Args:
        value: the argument's compact value.
        leaves: parameters by name.
        tangents: per parameter, three directional derivatives of the argument, along ones and two random directions.
        directions: per parameter, these directions.
    """

    value: Tensor
    leaves: Mapping[str, Tensor]
    tangents: Mapping[str, Sequence[Tensor]]
    directions: Mapping[str, tuple[Tensor, Tensor, Tensor]]


class Tangents(Sequence[Sequence[Tensor]]):
    """Jacobian-vector products of many outputs with respect to one leaf, each direction when it is asked for.

    Differentiating twice gives them without forward mode, which not all operations have.

    Args:
        outputs: tensors computed from ``leaf``.
        leaf: tensor that requires gradients.
        directions: tangents, shape of ``leaf`` each.
    """

    def __init__(self, outputs: Sequence[Tensor], leaf: Tensor, directions: Sequence[Tensor]) -> None:
        self.outputs, self.leaf, self.directions = outputs, leaf, directions
        self.seeds = [torch.zeros_like(o, requires_grad=True) for o in outputs]
        self.live = [i for i, o in enumerate(outputs) if o.requires_grad]
        self.found: dict[int, list[Tensor]] = {}

    def __len__(self) -> int:
        return len(self.directions)

    @cached_property
    def pulled(self) -> Tensor | None:
        """The vector–Jacobian product as a function of the seeds; None where no output depends on the leaf."""
        if not self.live:
            return None
        # Scalars are differentiated: ``grad_outputs`` make torch import a computer algebra system (half a second).
        total = sum((self.outputs[i] * self.seeds[i]).sum() for i in self.live)
        (pulled,) = torch.autograd.grad(total, [self.leaf], create_graph=True, allow_unused=True)  # type: ignore[arg-type]
        return pulled if pulled is not None and pulled.requires_grad else None

    def __getitem__(self, direction: Any) -> Any:
        """One tensor per output, along one direction; for a slice, a list of such."""
        if isinstance(direction, slice):
            return [self[i] for i in range(*direction.indices(len(self)))]
        if direction not in self.found:
            with torch.enable_grad():
                self.found[direction] = self._along(self.directions[direction])
        return self.found[direction]

    def _along(self, direction: Tensor) -> list[Tensor]:
        row = [torch.zeros_like(o) for o in self.outputs]
        if self.pulled is None:
            return row
        seeds = [self.seeds[i] for i in self.live]
        parts = torch.autograd.grad((self.pulled * direction).sum(), seeds, retain_graph=True, allow_unused=True)
        for i, part in zip(self.live, parts, strict=True):
            row[i] = row[i] if part is None else part
        return row


class TangentsOf(Sequence[Tensor]):
    """Directional derivatives of one of the outputs.

    Args:
        tangents: of all outputs.
        output: its position.
    """

    def __init__(self, tangents: Tangents, output: int) -> None:
        self.tangents, self.output = tangents, output

    def __len__(self) -> int:
        return len(self.tangents)

    def __getitem__(self, direction: Any) -> Any:
        """Along one direction; for a slice, a list."""
        found = self.tangents[direction]
        return [row[self.output] for row in found] if isinstance(direction, slice) else found[self.output]


def find_links(
    first: Probe, second: Probe, sources: Sequence[str], normalised: bool, tables: bool = False
) -> tuple[Link, ...]:
    """Links of one argument, or () where some element is not an element of one parameter.

    Args:
        first, second: the argument at two independent random parameter settings.
        sources: parameters that feed it.
        normalised: the family divides by the row's sum (or subtracts its logsumexp) itself.
        tables: the argument is a table of probabilities: the program may normalise it itself.
    """
    if normalised:
        links = _rowwise(first, second, sources)
        return links if links and _derivative_agrees(first, links, normalised) else ()
    links = tuple(link for name in sources if (link := _elementwise(first, second, name)) is not None)
    if not links:
        links = _transformed(first, second, sources, ROWWISE if tables else MATRIXWISE)
    covered = torch.zeros(first.value.shape, dtype=torch.int64)
    for link in links:
        covered += (link.index >= 0).to(covered.device)
    moved = (first.value - second.value).abs() > 0
    if not links or bool((covered > 1).any()) or bool((moved & (covered == 0)).any()):
        return ()
    return links if _derivative_agrees(first, links, normalised) else ()


def _elementwise(first: Probe, second: Probe, name: str) -> Link | None:
    ones, jr, js = first.tangents[name]
    _, r, s = first.directions[name]
    touched = (jr != 0) | (js != 0)
    if not bool(touched.any()):
        return None
    ratio = torch.where(touched, jr / torch.where(ones == 0, torch.ones_like(ones), ones), torch.zeros_like(jr))
    index = _match(ratio, r)
    index = torch.where(touched & (ones != 0), index, torch.full_like(index, -1))
    expected = s.reshape(-1)[index.clamp_min(0)] * ones
    if bool((touched & ((index < 0) | ~_close(expected, js))).any()):
        return None
    for transform in ELEMENTWISE:
        affine = [_affine(probe, name, index, transform) for probe in (first, second)]
        (slope, offset), (slope2, offset2) = affine
        here = index >= 0
        same = _close(slope, slope2) & _close(offset, offset2)
        if bool((same | ~here).all()) and bool(torch.isfinite(slope[here]).all()):
            return _simplified(name, index, transform, slope, offset)
    return None


def _affine(probe: Probe, name: str, index: Tensor, transform: Transform) -> tuple[Tensor, Tensor]:
    leaf = probe.leaves[name].detach().requires_grad_(True)
    image = transform.forward(leaf)
    (derivative,) = torch.autograd.grad(image.sum(), leaf)
    at = index.clamp_min(0)
    slope = probe.tangents[name][0] / derivative.reshape(-1)[at]
    offset = probe.value - slope * image.detach().reshape(-1)[at]
    return slope, offset


def _simplified(name: str, index: Tensor, transform: Transform, slope: Tensor, offset: Tensor) -> Link:
    here = index >= 0
    eps = 64 * torch.finfo(slope.dtype).eps
    # Rounding of the derivative is taken off slopes and offsets that are whole numbers.
    slope = torch.where((slope - slope.round()).abs() < eps * slope.abs().clamp_min(1), slope.round(), slope)
    scale = offset.abs().clamp_min(1)
    offset = torch.where((offset - offset.round()).abs() < 1e3 * eps * scale, offset.round(), offset)
    if bool(((slope == 1) & (offset == 0))[here].all()):
        return Link(name, index, transform)
    return Link(name, index, transform, torch.where(here, slope, 0.0), torch.where(here, offset, 0.0))


def _rowwise(first: Probe, second: Probe, sources: Sequence[str]) -> tuple[Link, ...]:
    links = _transformed(first, second, sources, (IDENTITY, *ROWWISE, *ELEMENTWISE[1:]))
    if links:
        return links
    return _two_sided(first, second, sources) or _transformed(first, second, sources, (STICK_BREAKING,))


def _two_sided(first: Probe, second: Probe, sources: Sequence[str]) -> tuple[Link, ...]:
    """A probability and its complement: elements p and 1 − p of the same parameter."""
    if len(sources) != 1:
        return ()
    name = sources[0]
    pieces = []
    for probe in (first, second):
        leaf = probe.leaves[name].detach()
        direct, mirrored = _match(probe.value, leaf), _match(probe.value, 1 - leaf)
        pieces.append((torch.where(direct >= 0, direct, mirrored), torch.where(direct >= 0, 1.0, -1.0)))
    (index, slope), (index2, slope2) = pieces
    if bool((index < 0).any()) or not torch.equal(index, index2) or not torch.equal(slope, slope2):
        return ()
    slope = slope.to(first.value.dtype)
    return (Link(name, index, IDENTITY, slope, (1 - slope) / 2),)


def _transformed(
    first: Probe, second: Probe, sources: Sequence[str], transforms: Sequence[Transform]
) -> tuple[Link, ...]:
    for transform in transforms:
        found: list[Link] = []
        total = torch.full(first.value.shape, -1, dtype=torch.int64, device=first.value.device)
        for name in sources:
            images = []
            for probe in (first, second):
                leaf = probe.leaves[name].detach()
                if not transform.elementwise and leaf.dim() == 0:
                    break
                try:
                    image = transform.forward(leaf)
                except RuntimeError:  # the transform does not apply to this shape
                    break
                images.append(_oriented(_match(probe.value, image), image, transform))
            if len(images) < 2 or not torch.equal(images[0], images[1]) or bool((images[0] < 0).all()):
                continue
            found.append(Link(name, images[0], transform))
            total = torch.maximum(total, images[0])
        constant = first.value == second.value
        if found and bool(((total >= 0) | constant).all()):
            return tuple(found)
    return ()


def _oriented(index: Tensor, image: Tensor, transform: Transform) -> Tensor:
    """Positions in a symmetric matrix on the side of the diagonal on which the argument's element stands.

    Both sides hold the same numbers, so that a match by value finds either. Zeros of a triangular matrix are none of
    the parameter's elements.
    """
    if transform not in MATRIXWISE or index.shape[-2:] != image.shape[-2:]:
        return index
    size = image.shape[-1]
    i, j = index % size**2 // size, index % size
    here = torch.arange(size, device=index.device)
    above = here[:, None] < here
    if transform.name == "cholesky":
        return torch.where(above, -1, index)
    mirrored = (index >= 0) & (i != j) & ((i < j) != above)
    return torch.where(mirrored, index + (j - i) * (size - 1), index)


def _derivative_agrees(probe: Probe, links: Sequence[Link], normalised: bool) -> bool:
    """The links' own derivative along the random directions equals the program's."""
    names = list(dict.fromkeys(link.parameter for link in links))
    leaves = {n: probe.leaves[n].detach().requires_grad_(True) for n in names}
    from ppl_em.ir import Argument

    value = Factor(probe.value.detach(), ())
    predicted = Argument(value, tuple(links)).evaluate(leaves)
    if normalised:
        total = (
            predicted.exp().sum(-1, keepdim=True) if bool((predicted < 0).any()) else predicted.sum(-1, keepdim=True)
        )
        predicted = predicted - total.log() if bool((predicted < 0).any()) else predicted / total
    for name in names:
        mine = Tangents([predicted], leaves[name], probe.directions[name][1:])
        for (own,), theirs in zip(mine, probe.tangents[name][1:], strict=True):
            if not bool(_close(own, theirs, 1e3).all()):
                return False
    return True


def _match(values: Tensor, source: Tensor) -> Tensor:
    """Position in ``source`` (flattened) of each value, −1 where none is equal up to rounding."""
    flat = source.detach().reshape(-1)
    if flat.numel() == 0 or not bool(torch.isfinite(flat).all()):
        return torch.full(values.shape, -1, dtype=torch.int64, device=values.device)
    ordered, order = flat.sort()
    values = values.detach().contiguous()
    right = torch.searchsorted(ordered, values).clamp_max(len(flat) - 1)
    left = (right - 1).clamp_min(0)
    nearer = torch.where((ordered[left] - values).abs() < (ordered[right] - values).abs(), left, right)
    return torch.where(_close(ordered[nearer], values), order[nearer], torch.full_like(nearer, -1))


def _close(a: Tensor, b: Tensor, slack: float = 1.0) -> Tensor:
    tolerance = slack * (1e-9 if a.dtype == torch.float64 else 2e-5)
    return (a - b).abs() <= tolerance * (1 + torch.maximum(a.abs(), b.abs()))
