"""Latents that are drawn together: those of the same plates, mean-field or with one joint covariance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_em.errors import ModelError, message
from ppl_em.svi.discrete import Table
from ppl_em.svi.families import Family, PushforwardNormal, family_for, is_identity, softplus_scale
from ppl_em.trace.run import Record

#: Input at which `softplus_scale` is 0.1.
NARROW = -2.6342
#: Draws a value: site name, distribution, the same with its parameters held (None: not wanted), and for an auxiliary
#: variable the latent whose plates it shares.
Sample = Callable[[str, Any, Any, str | None], Tensor]


@dataclass(frozen=True)
class Member:
    """A latent of a group.

    Args:
        name: site name.
        shape: shape of the value of one element of all plates (undeclared batch dimensions, then the event).
        event_dim: how many of these dimensions are the event.
        family: its variational family.
    """

    name: str
    shape: torch.Size
    event_dim: int
    family: Family


@dataclass(frozen=True)
class Group:
    """Latents of the same plates.

    Args:
        plates: (plate, dimension from the right), leftmost first.
        members: the latents.
        joint: one normal distribution with full covariance for all of them, in unconstrained space.
        trailing: batch dimensions of size 1 to the right of the last plate.
    """

    plates: tuple[tuple[str, int], ...]
    members: tuple[Member, ...]
    joint: bool
    trailing: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the plates."""
        return tuple(n for n, _ in self.plates)

    @property
    def num_inputs(self) -> int:
        """How many unconstrained numbers determine the group's distribution, for one element of its plates."""
        if not self.joint:
            return sum(m.family.num_inputs for m in self.members)
        size = sum(m.family.size for m in self.members)  # type: ignore[attr-defined]
        return 2 * size + size * (size - 1) // 2

    def narrow(self) -> Tensor:
        """Inputs (num_inputs,) of a distribution a tenth as wide as the prior, at its centre.

        Where parameters of their own are fitted (not an encoder's outputs), all data bear on them: the posterior is
        narrower than the prior, and gradients at wide draws would be noise.
        """
        inputs = torch.zeros(self.num_inputs)
        if self.joint:
            size = sum(m.family.size for m in self.members)  # type: ignore[attr-defined]
            inputs[size : 2 * size] = NARROW
            return inputs
        at = 0
        for member in self.members:
            if isinstance(member.family, PushforwardNormal):
                inputs[at + member.family.size : at + 2 * member.family.size] = NARROW
            at += member.family.num_inputs
        return inputs

    def positioned(self, inputs: Tensor) -> Tensor:
        """(*plates, F) with size-1 dimensions where the plates leave gaps in the batch shape."""
        if not self.plates or (self.span == len(self.plates) and not self.trailing):
            return inputs
        left, right = self.plates[0][1], self.plates[-1][1]
        sizes = {d: n for (_, d), n in zip(self.plates, inputs.shape, strict=False)}
        batch = [sizes.get(d, 1) for d in range(left, right + 1)]
        return inputs.reshape(*batch, *[1] * self.trailing, inputs.shape[-1])

    @property
    def span(self) -> int:
        """Number of batch dimensions from the first plate to the last."""
        return self.plates[-1][1] - self.plates[0][1] + 1 if self.plates else 0

    def draw(self, inputs: Tensor, sample: Sample, held: bool = False) -> dict[str, Tensor]:
        """One reparameterised draw, values by latent.

        Args:
            inputs: (*plates, num_inputs).
            sample: draws from a distribution under a name.
            held: also give ``sample`` the distribution with its parameters held: log q then has gradients along the
                draw only, and the bound's gradient has no variance where q is the posterior.

        Reference:
            Roeder, G., Wu, Y. & Duvenaud, D. (2017). Sticking the landing. NeurIPS.
        """
        inputs = self.positioned(inputs)
        if self.joint:
            return self._draw_joint(inputs, sample, held)
        values, at = {}, 0
        for member in self.members:
            mine = inputs[..., at : at + member.family.num_inputs]
            at += member.family.num_inputs
            held_here = held or isinstance(member.family, Table)  # draws without derivatives enter by the score
            twin = member.family(mine.detach()) if held_here else None
            values[member.name] = sample(member.name, member.family(mine), twin, None)
        return values

    def _draw_joint(self, inputs: Tensor, sample: Sample, held: bool) -> dict[str, Tensor]:
        fn = self._normal(inputs)
        twin = self._normal(inputs.detach()) if held else None
        first = self.members[0]
        families: list[PushforwardNormal] = [m.family for m in self.members]  # type: ignore[misc]
        if len(self.members) == 1 and first.shape == fn.event_shape and is_identity(families[0].transform):
            return {first.name: sample(first.name, fn, twin, None)}
        together = sample(f"_{first.name}_joint", fn, twin, first.name)
        pieces = together.split([f.size for f in families], -1)
        return {
            m.name: sample(m.name, _carried(m, f, piece), None, None)
            for m, f, piece in zip(self.members, families, pieces, strict=True)
        }

    def _normal(self, inputs: Tensor) -> Any:
        """The joint normal distribution in unconstrained space."""
        families: list[PushforwardNormal] = [m.family for m in self.members]  # type: ignore[misc]
        size = sum(f.size for f in families)
        loc, raw, below = inputs.split([size, size, size * (size - 1) // 2], -1)
        base_loc, base_scale = torch.cat([f.loc for f in families]), torch.cat([f.scale for f in families])
        tril = torch.diag_embed(softplus_scale(raw))
        if size > 1:
            rows, columns = torch.tril_indices(size, size, -1, device=inputs.device)
            tril[..., rows, columns] = below
        loc, tril = torch.addcmul(base_loc, base_scale, loc), base_scale.unsqueeze(-1) * tril
        return dist.MultivariateNormal(loc, scale_tril=tril, validate_args=False)

    def marginal(self, name: str, joint: Any) -> Any:
        """Marginal of one member of a joint draw.

        Args:
            name: the member.
            joint: the normal distribution of all members in unconstrained space.
        """
        at = 0
        for member in self.members:
            family: PushforwardNormal = member.family  # type: ignore[assignment]
            if member.name == name:
                keep = slice(at, at + family.size)
                loc, cov = joint.loc[..., keep], joint.covariance_matrix[..., keep, keep]
                if family.free_shape == ():
                    return family.carry(dist.Normal(loc[..., 0], cov[..., 0, 0].sqrt(), validate_args=False))
                if family.free_shape == (family.size,):
                    return family.carry(dist.MultivariateNormal(loc, cov, validate_args=False))
                scale = cov.diagonal(dim1=-2, dim2=-1).sqrt()
                base = dist.Normal(family.shaped(loc), family.shaped(scale), validate_args=False)
                return family.carry(base.to_event(len(family.free_shape)))
            at += family.size
        raise KeyError(name)

    def free_values(self, values: Mapping[str, Tensor]) -> Tensor:
        """Unconstrained, standardised values of all members that have a bijection, (*batch from first to last plate, n)."""
        parts = []
        for member in self.members:
            family = member.family
            if isinstance(family, PushforwardNormal):
                free = family.transform.inv(values[member.name])
                flat = free.reshape(free.shape[: self.span] + (-1,))
                parts.append((flat - family.loc) / family.scale)
        return torch.cat(parts, -1) if parts else torch.zeros(0)


def _carried(member: Member, family: PushforwardNormal, piece: Tensor) -> Any:
    """A point mass at the image of unconstrained values, with the density of the change of variables."""
    free = family.shaped(piece)
    value = family.transform(free)
    change = family.transform.log_abs_det_jacobian(free, value)
    while change.dim() > value.dim() - member.event_dim:
        change = change.sum(-1)
    return dist.Delta(value, -change, event_dim=member.event_dim, validate_args=False)


def group_latents(
    names: Sequence[str],
    records: Mapping[str, Record],
    draws: Mapping[str, Tensor],
    covariance: str,
    discrete: Mapping[str, str] | None = None,
) -> list[Group]:
    """Latents grouped by their plates, those of fewer plates first.

    Args:
        names: latents to be drawn, in program order.
        records: their sites in a run.
        draws: (n, *shape of the site's value) draws from their priors.
        covariance: ``"diagonal"`` or ``"full"``.
        discrete: discrete ones among the latents, and why they are not summed; they are grouped by themselves.

    Raises:
        ModelError: a batch dimension between plates that is no plate.
    """
    unsummed = discrete or {}
    found: dict[tuple[tuple[tuple[str, int], ...], bool], list[str]] = {}
    for name in names:
        frames = records[name].frames
        plates = tuple((n, d) for d, n in sorted((f.dim, f.name) for f in frames if f.dim is not None))
        found.setdefault((plates, name in unsummed), []).append(name)
    groups = []
    for (plates, _), mine in sorted(found.items(), key=lambda item: (len(item[0][0]), item[0][1])):
        inner = [_inner(records[n], plates) for n in mine]
        plain = bool(plates) and all(i.numel() == 1 for i in inner)
        members = tuple(
            _member(records[n], draws[n], torch.Size() if plain else i, unsummed.get(n))
            for n, i in zip(mine, inner, strict=True)
        )
        joint = covariance == "full" and all(isinstance(m.family, PushforwardNormal) for m in members)
        groups.append(Group(plates, members, joint, len(inner[0]) if plain else 0))
    return groups


def _inner(record: Record, plates: tuple[tuple[str, int], ...]) -> torch.Size:
    """Batch dimensions to the right of the last plate."""
    fn = record.fn
    rank = len(fn.batch_shape)
    right = plates[-1][1] if plates else -rank - 1
    dims = {d for _, d in plates}
    between = [d for d in range(-rank, right) if d not in dims and fn.batch_shape[d] > 1]
    if between:
        raise ModelError(
            message(
                "a batch dimension to the left of a plate is no plate itself",
                site=record.name,
                value=f"dimension {between[0]} of size {fn.batch_shape[between[0]]}",
                hint="pyro.plate for it, or .to_event()",
            )
        )
    return torch.Size(fn.batch_shape[rank + right + 1 :])


def _member(record: Record, draws: Tensor, inner: torch.Size, unsummed: str | None = None) -> Member:
    shape = inner + record.fn.event_shape
    if unsummed is not None:
        return Member(record.name, shape, record.fn.event_dim, Table(record, shape, unsummed))
    support = record.fn.support
    if inner:
        support = constraints.independent(support, len(inner))
    family = family_for(record.name, support, shape, draws.reshape((-1, *shape)), len(inner))
    return Member(record.name, shape, record.fn.event_dim, family)
