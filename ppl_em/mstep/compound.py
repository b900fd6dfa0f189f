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
from ppl_em.mstep.missing import without_gaps
from ppl_em.mstep.part import Part, flattened
from ppl_em.mstep.registry import Exactness, Rule, weighted_mle
from ppl_em.mstep.sample import NoClosedForm, WeightedSample

SWEEPS = 200
"""Inner EM steps at most."""
NEAR = 1e-9
"""Gain of an inner EM step, relative to the log-likelihood, below which Newton's method takes over."""
COLLAPSE = 1e-9
"""Part of its old value below which a scale has collapsed."""
POLISH = 20
"""Newton steps at most: near a maximum they converge quadratically."""
MIXED = 0.01
"""Share of a datum that each other component gets where components are set apart."""
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
        inner = Part(sample, family, "base", shape=())
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
            inner = Part(sample, family, name, shape=())
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
    newton = newton_rule(family, _ceilings(known), POLISH)

    def fit(sample: WeightedSample) -> None:
        if _alike(sample):  # a saddle, where EM would stay
            before = float(sample.log_likelihood(family))
            trial = _continued(sample)
            _sweep(trial, family, known, apart=True)
            _climb(trial, family, known, newton)
            if float(trial.log_likelihood(family)) > before:
                sample.proposals.update(trial.proposals)
                return
        _climb(sample, family, known, newton)

    return _rule(family, fit, ["newton"], _ceilings(known))


def _climb(
    sample: WeightedSample, family: type[MixtureOf], known: Mapping[str, Rule], newton: Callable[[WeightedSample], None]
) -> None:
    """Inner EM until it gains little, then Newton's method where coordinates admit it."""
    smooth = _smooth(sample, family)
    last = float(sample.log_likelihood(family))
    for _ in range(SWEEPS):
        _sweep(sample, family, known)
        value = float(sample.log_likelihood(family))
        if value - last <= (NEAR if smooth else EQUAL) * (1 + abs(value)):
            break
        last = value
    if smooth and not _collapsed(sample, family):
        _polish(sample, family, newton)


def _collapsed(sample: WeightedSample, family: type[MixtureOf]) -> bool:
    """Whether a scale has shrunk beyond all bounds: the likelihood has no maximum there."""
    positive = [n for n in sample.args if constraint_of(family, n) is constraints.positive]
    return any(bool((sample.rows(n) < COLLAPSE * sample.args[n].value.abs().max()).any()) for n in positive)


def _alike(sample: WeightedSample) -> bool:
    """Whether all components are the same: EM cannot tell them apart and stays at that saddle."""
    values = [sample.rows(n) for n in sample.args if n.startswith("component_")]
    return all(bool(torch.isclose(v, v[:, :1], rtol=1e-9, atol=1e-12).all()) for v in values)


def _continued(sample: WeightedSample) -> WeightedSample:
    """The same data at the newest proposals."""
    arguments = {n: Argument(sample.rows(n), a.cells, a.pattern) for n, a in sample.args.items()}
    return WeightedSample(arguments, sample.blocks, sample.num_rows, sample.event_dim)


def _sweep(sample: WeightedSample, family: type[MixtureOf], known: Mapping[str, Rule], apart: bool = False) -> None:
    """One step of EM over the hidden component.

    Args:
        apart: take memberships from the order of the data, not from the posterior.
    """
    size = max(sample.args[n].value.shape[1] for n in sample.args)
    inner = Part(sample, family, "component", shape=(size,))
    blocks, counts = [], []
    for outer, block in zip(sample.blocks, inner.blocks, strict=True):
        flat = flattened(outer, sample.event_dim)
        shares = _in_order(flat, size, sample.event_dim) if apart else _shares(sample, family, flat)
        weights = flat.weights[:, None].double() * shares
        counts.append(Block(weights.sum(-1), torch.arange(size, device=weights.device), flat.rows))
        blocks.append(without_gaps(Block(weights.flatten(0, 1), block.values, block.rows), inner.event_dim))
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


def _in_order(block: Block, size: int, event_dim: int) -> Tensor:
    """Memberships (R_b, K, I) by the order of the data along their longest axis, equally many to each component."""
    values = torch.nan_to_num(block.values.double())
    values = values if block.per_row(event_dim) else values[None]
    flat = values.reshape(*values.shape[:2], -1)
    flat = flat - flat.mean(1, keepdim=True)
    axis = torch.linalg.eigh(flat.mT @ flat)[1][..., -1:]
    rank = (flat @ axis)[..., 0].argsort(-1).argsort(-1)
    label = (rank * size) // rank.shape[-1]
    hot = torch.nn.functional.one_hot(label, size).double().mT
    return (MIXED + (1 - size * MIXED) * hot).expand(len(block.rows), size, -1)


def _polish(sample: WeightedSample, family: type[MixtureOf], newton: Callable[[WeightedSample], None]) -> None:
    """Newton's method from the current proposals; they stay where it does not gain."""
    trial = _continued(sample)
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
