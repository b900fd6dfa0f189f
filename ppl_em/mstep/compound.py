"""Families made of others: their parts' own rules, given expected memberships where the component is hidden."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_em.distributions.compound import TRANSFORMS, Compound, MaskedPair, MixtureOf, TransformedOf
from ppl_em.mstep.block import Argument, Block
from ppl_em.mstep.constraint import constraint_of
from ppl_em.mstep.inner import newton_rule
from ppl_em.mstep.registry import Exactness, Rule, weighted_mle
from ppl_em.mstep.sample import NoClosedForm, WeightedSample

SWEEPS = 200
"""Inner EM steps at most."""
NEAR = 1e-9
"""Gain of an inner EM step, relative to the log-likelihood, below which Newton's method takes over."""
EQUAL = 1e-14
"""Gain below which inner EM ends where Newton's method does not apply."""


@weighted_mle.derive(TransformedOf)
def transformed(family: type[TransformedOf]) -> Rule | None:
    """The base's rule on what the transforms map to the data; the transforms themselves are fixed."""
    known = _rules(family)
    if known is None:
        return None

    def fit(sample: WeightedSample) -> None:
        held = [f"transform{i}_{n}" for i, kind in enumerate(family.chain) for n in TRANSFORMS[kind]]
        moving = [n for n in held if n in sample.args and sample.free(n)]
        if moving:
            raise NoClosedForm(f"the transform's own argument '{moving[0]}' is estimated")
        inner = _Part(sample, family, "base", shape=())
        blocks = []
        for block in inner.blocks:
            arguments = {n: sample.rows(n)[inner.source[block.rows]] for n in held}
            if any(not _constant(t) for t in arguments.values()):
                raise NoClosedForm("the transform differs between rows")
            one = {n: t.reshape(-1)[0] for n, t in arguments.items()}
            blocks.append(Block(block.weights, family(**one).preimage(block.values), block.rows))
        inner.fit(known["base"], blocks)

    return _rule(family, fit, [known["base"].exact], _ceilings(known))


@weighted_mle.derive(MaskedPair)
def masked_pair(family: type[MaskedPair]) -> Rule | None:
    """Each component's rule on the data of its side of the mask."""
    known = _rules(family)
    if known is None:
        return None

    def fit(sample: WeightedSample) -> None:
        for side, name in enumerate(("component0", "component1")):
            inner = _Part(sample, family, name, shape=())
            mask = (sample.rows("mask")[inner.source] > 0) == bool(side)
            blocks = [Block(b.weights * _by_row(mask[b.rows], b), b.values, b.rows) for b in inner.blocks]
            inner.fit(known[name], blocks)

    return _rule(family, fit, [r.exact for r in known.values()], _ceilings(known))


@weighted_mle.derive(MixtureOf)
def mixture(family: type[MixtureOf]) -> Rule | None:
    """EM over the hidden component, by the components' own rule; then Newton's method to rounding.

    The likelihood may have several maxima; the one that is reached is not below the start.

    Reference: Dempster, Laird, Rubin (1977), Maximum likelihood from incomplete data via the EM algorithm, section 4.3.
    """
    known = _rules(family)
    if known is None:
        return None
    newton = newton_rule(family, _ceilings(known))

    def fit(sample: WeightedSample) -> None:
        smooth = _smooth(sample, family)
        last = float(sample.log_likelihood(family))
        for _ in range(SWEEPS):
            _sweep(sample, family, known)
            value = float(sample.log_likelihood(family))
            if value - last <= (NEAR if smooth else EQUAL) * (1 + abs(value)):
                break
            last = value
        if smooth:
            _polish(sample, family, newton)

    return _rule(family, fit, ["newton"], _ceilings(known))


def _sweep(sample: WeightedSample, family: type[MixtureOf], known: Mapping[str, Rule]) -> None:
    """One step of EM over the hidden component."""
    size = max(sample.args[n].value.shape[1] for n in sample.args)
    inner = _Part(sample, family, "component", shape=(size,))
    blocks, counts = [], []
    for outer, block in zip(sample.blocks, inner.blocks, strict=True):
        flat = _flattened(outer, sample.event_dim)
        shares = _shares(sample, family, flat)
        weights = flat.weights[:, None].double() * shares
        counts.append(Block(weights.sum(-1), torch.arange(size, device=weights.device), flat.rows))
        blocks.append(Block(weights.flatten(0, 1), block.values, block.rows))
    prefix = "mixture_"
    own = {n.removeprefix(prefix): n for n in sample.args if n.startswith(prefix)}
    arguments = {
        n: Argument(sample.rows(full), sample.args[full].cells, sample.args[full].pattern) for n, full in own.items()
    }
    categories = WeightedSample(arguments, tuple(counts), sample.num_rows)
    weighted_mle[dist.Categorical](categories)
    inner.fit(known["component"], blocks)
    for n, values in categories.proposals.items():
        sample.propose(own[n], values)


def _shares(sample: WeightedSample, family: type[MixtureOf], block: Block) -> Tensor:
    """Posterior probability of each component, (R_b, K, I); zero weight where a datum counts nowhere."""
    arguments = {n: sample.rows(n)[block.rows].unsqueeze(1) for n in sample.args}
    event_dim = sample.event_dim
    live = block.weights > 0 if block.per_row(event_dim) else (block.weights > 0).any(0)
    wide = live.reshape(live.shape + (1,) * event_dim)
    stand_in = block.values[live][:1] if bool(live.any()) else block.values[:0]
    values = torch.where(wide, block.values, stand_in.reshape(stand_in.shape[1:]) if len(stand_in) else 0.0)
    joint = family(**arguments).log_joint(values.double())
    shares = joint.softmax(-1).mT
    return torch.where(block.weights[:, None] > 0, shares, 0.0)


def _polish(sample: WeightedSample, family: type[MixtureOf], newton: Callable[[WeightedSample], None]) -> None:
    """Newton's method from the current proposals; they stay where it does not gain."""
    arguments = {n: Argument(sample.rows(n), a.cells, a.pattern) for n, a in sample.args.items()}
    trial = WeightedSample(arguments, sample.blocks, sample.num_rows, sample.event_dim)
    try:
        newton(trial)
    except (NoClosedForm, ValueError):
        return
    before = float(sample.log_likelihood(family))
    for n in trial.proposals:
        if constraint_of(family, n) is constraints.simplex:
            values = trial.cell_values(n)
            trial.proposals[n] = values / values.sum(-1, keepdim=True)
    after = float(trial.log_likelihood(family))
    if after >= before - 1e-13 * abs(before):
        sample.proposals.update(trial.proposals)


def _smooth(sample: WeightedSample, family: type[MixtureOf]) -> bool:
    """Whether elementwise coordinates describe all free arguments."""
    for n in sample.args:
        if not sample.free(n):
            continue
        constraint = constraint_of(family, n)
        if constraint is constraints.simplex and sample.ties(n).patterned:
            return False
        if getattr(constraint, "event_dim", 0) > 0 and constraint not in (constraints.simplex, constraints.real_vector):
            return False
    return True


class _Part:
    """The arguments and the data of one part, as a weighted sample of its own.

    Args:
        sample: of the whole.
        family: of the whole.
        name: prefix of the part's arguments.
        shape: dimensions that its arguments have besides those of the whole (components).
    """

    def __init__(self, sample: WeightedSample, family: type[Compound], name: str, shape: tuple[int, ...]) -> None:
        self.sample = sample
        self.event_dim = sample.event_dim - family.reinterpreted
        self.names = {n.removeprefix(f"{name}_"): n for n in sample.args if n.startswith(f"{name}_")}
        values = sample.blocks[0].values
        events = values.shape[values.dim() - sample.event_dim :]
        self.shape = (*shape, *events[: family.reinterpreted])
        index = torch.arange(sample.num_rows * torch.Size(self.shape).numel(), device=values.device)
        index = index.reshape(sample.num_rows, *self.shape)
        self.num_rows = index.numel()
        self.source = torch.arange(sample.num_rows, device=values.device).repeat_interleave(
            torch.Size(self.shape).numel()
        )
        flat = [_flattened(b, sample.event_dim) for b in sample.blocks]
        copies = shape[0] if shape else 1
        self.blocks = [
            Block(
                b.weights.repeat_interleave(copies, 0) if copies > 1 else b.weights,
                b.values.repeat_interleave(copies, 0) if copies > 1 and b.per_row(sample.event_dim) else b.values,
                index[b.rows].reshape(len(b.rows) * copies, *self.shape[len(shape) :]),
            )
            for b in flat
        ]
        self.groups: dict[str, Tensor] = {}
        self.arguments = {n: self._argument(n, full) for n, full in self.names.items()}

    def _argument(self, name: str, full: str) -> Argument:
        """One argument by the part's rows; elements of one parameter element are tied."""
        value = self._wide(self.sample.rows(full))
        if not self.sample.free(full):
            return Argument(value)
        ties = self.sample.ties(full)
        groups = self._wide(ties.groups[ties.cells])
        self.groups[name] = groups
        flat = groups.reshape(len(groups), -1)
        # Rows with a fixed element keep it: each is a cell of its own.
        alone = torch.arange(len(flat), device=flat.device)[:, None]
        key = torch.cat([flat, torch.where((flat < 0).any(1, keepdim=True), alone, -1)], 1)
        _, cells = torch.unique(key, dim=0, return_inverse=True)
        first = torch.zeros(int(cells.max()) + 1, dtype=torch.long, device=cells.device)
        first[cells.flip(0)] = torch.arange(len(cells), device=cells.device).flip(0)
        pattern = groups[first]
        distinct = pattern.unique().numel() == pattern.numel() and bool((pattern >= 0).all())
        return Argument(value, cells, None if distinct else pattern)

    def _wide(self, by_row: Tensor) -> Tensor:
        """(R, components or 1, …) to (rows of the part, *argument event)."""
        tail = by_row.shape[1 + len(self.shape) :]
        return by_row.expand(len(by_row), *self.shape, *tail).reshape(self.num_rows, *tail)

    def fit(self, rule: Rule, blocks: Sequence[Block]) -> None:
        """Let the part's rule propose, and hand its proposals to the whole."""
        inner = WeightedSample(self.arguments, tuple(blocks), self.num_rows, self.event_dim)
        rule(inner)
        for name in inner.proposals:
            full, groups = self.names[name], self.groups[name]
            elements = self.sample.ties(full).gather(self.sample.cell_values(full))
            values, known = inner.rows(name), groups >= 0
            elements[groups[known]] = values[known]
            self.sample.propose_elements(full, elements)


def _flattened(block: Block, event_dim: int) -> Block:
    """The block with dimensions that share weights as rows of their own."""
    extra = block.extra
    if not extra:
        return block
    size = extra.numel()
    weights = block.weights.repeat_interleave(size, 0)
    values = (
        block.values
        if block.per_row(event_dim)
        else block.values.unsqueeze(0).expand(len(block.rows), *block.values.shape)
    )
    event = values.shape[values.dim() - event_dim :]
    values = values.reshape(*values.shape[:2], size, *event).transpose(1, 2).reshape(len(weights), -1, *event)
    return Block(weights, values, block.rows.reshape(-1))


def _by_row(mask: Tensor, block: Block) -> Tensor:
    """(R_b, *E) to (R_b, 1): rows of one block that share weights share the mask."""
    return mask.reshape(len(block.weights), -1)[:, :1].to(block.weights.dtype)


def _constant(tensor: Tensor) -> bool:
    return bool((tensor == tensor.reshape(-1)[0]).all())


def _rules(family: type[Compound]) -> dict[str, Rule] | None:
    """The rule of each part, None where one is missing."""
    if any(part not in weighted_mle for part in family.parts.values()):
        return None
    return {name: weighted_mle[part] for name, part in family.parts.items()}


def _ceilings(known: Mapping[str, Rule]) -> dict[str, float]:
    return {f"{name}_{n}": value for name, rule in known.items() for n, value in rule.ceilings.items()}


def _rule(
    family: type, fit: Callable[[WeightedSample], None], promises: Sequence[Exactness], ceilings: dict[str, float]
) -> Rule:
    """A rule that promises the least of what its parts promise."""
    exact: Any = next((p for p in ("ascent", "newton") if p in promises), True)
    return Rule(family, fit, exact, {}, ceilings)
