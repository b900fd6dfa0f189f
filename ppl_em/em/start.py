"""Starts: where EM begins decides where it ends.

Reference:
    Arthur, D. & Vassilvitskii, S. (2007). k-means++: the advantages of careful seeding. SODA.
    Biernacki, C., Celeux, G. & Govaert, G. (2003). Choosing starting values for the EM algorithm. CSDA 41.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributions import SoftmaxTransform, constraints, transform_to

from ppl_em.distributions.partly_observed import without_gaps
from ppl_em.em.e_step import EStep
from ppl_em.em.loop import Machine
from ppl_em.em.updates import ClosedForm, Parameters
from ppl_em.exact.chain_slices import slices_of
from ppl_em.exact.engine import Weights
from ppl_em.ir import Factor, Site
from ppl_em.ir.block import Block
from ppl_em.plan.plan import Plan

#: Weight that a start gives to the cluster of a datum; the rest is shared by the other states.
CONFIDENCE = 0.9
#: Data that the seeding looks at.
SEED_DATA = 4000
#: Steps over which a chain's data are averaged.
WINDOW = 7


def data_start(machine: Machine, base: Parameters, generator: torch.Generator, kind: str) -> Parameters:
    """Parameters of an M-step from clusters of the data.

    Args:
        machine: plan and updaters.
        base: values that are kept where the M-step has nothing to say.
        generator: randomness.
        kind: ``"kmeans"`` (clusters by k-means++), ``"quantile"`` (equal parts along the data's principal axis),
            ``"window"`` (clusters of averages over neighbouring steps, in chains) or ``"random"`` (each datum to the
            nearest of as many random data).
    """
    plan = machine.plan
    weights: dict[str, Weights] = {s.name: Weights(s.scale or Factor(torch.ones(()), ())) for s in plan.plain}
    for entry in plan.blocks:
        weights.update(_block_weights(entry.engine, entry.block, generator, kind))
    return machine.maximise(perturb(plan, base, generator, 0.1, only_gradient=machine), EStep(0.0, 0.0, weights))


def perturb(
    plan: Plan,
    base: Parameters,
    generator: torch.Generator,
    size: float,
    only_gradient: Machine | None = None,
) -> Parameters:
    """Values moved at random in unconstrained space, so that no two components stay identical.

    Args:
        plan: gives the constraints.
        base: constrained values.
        size: standard deviation of the move.
        only_gradient: leave parameters with a closed form alone.
    """
    skip: set[str] = set()
    if only_gradient is not None:
        for updater in only_gradient.updaters:
            if isinstance(updater, ClosedForm):
                skip.update(updater.update.parameters)
    moved = {n: base[n] for n in plan.program.parameters}
    for name, parameter in plan.program.parameters.items():
        if parameter.frozen or name in skip or parameter.origin == "module":
            continue
        transform = transform_to(parameter.constraint)
        free = transform.inv(base[name].detach())
        # A probability of zero is structure: it stays zero.
        lowest = -torch.inf if isinstance(transform, SoftmaxTransform) else -50.0
        free = torch.nan_to_num(free, posinf=50.0, neginf=lowest)
        noise = torch.randn(free.shape, generator=generator, dtype=torch.float64).to(free)
        moved[name] = transform(free + size * noise)  # pyright: ignore[reportArgumentType]
    return moved


def drawn_probabilities(plan: Plan, base: Parameters, generator: torch.Generator) -> Parameters:
    """Values with every probability vector drawn uniformly from its simplex; zeros are structure and stay.

    Args:
        plan: gives the constraints.
        base: constrained values.
        generator: randomness.
    """
    values = dict(base)
    for name, parameter in plan.program.parameters.items():
        constraint = parameter.constraint
        while isinstance(constraint, constraints.independent):
            constraint = constraint.base_constraint
        if constraint is constraints.simplex and not parameter.frozen:
            uniform = torch.rand(base[name].shape, generator=generator, dtype=torch.float64).to(base[name])
            drawn = -torch.log1p(-uniform) * (base[name] != 0)
            values[name] = drawn / drawn.sum(-1, keepdim=True)
    return values


def _block_weights(engine: object, block: Block, generator: torch.Generator, kind: str) -> Mapping[str, Weights]:
    """Expected weights of a block whose observations are replaced by soft cluster labels."""
    stand_in = {s.name: Factor(torch.zeros(()), ()) for s in block.sites}
    unary = labelled_site(block)
    if block.slices is not None:
        stand_in.update(_sliced_labels(block, generator, kind))
    elif unary is not None:
        site, state, dims = unary
        labels = _labels(block, site, dims, state, generator, kind)
        stand_in[site.name] = _soft(labels, state, block.sizes[state], dims)
    else:
        for latent in block.latents:
            shape = [block.sizes[p] for p in latent.plates]
            labels = torch.randint(latent.cardinality, shape, generator=generator)
            own = next(s for s in block.sites if s.name == latent.name or latent.name in s.members)
            state = latent.name if block.axis is None else block.axis.now
            soft = _soft(labels, state, latent.cardinality, latent.plates)
            stand_in[own.name] = stand_in[own.name] + soft if block.axis is None else soft
    return weights_of(engine, block, stand_in)


def weights_of(engine: object, block: Block, labels: Mapping[str, Factor]) -> Mapping[str, Weights]:
    """Expected weights of every site of a block whose log-factors are those of soft labels.

    Args:
        engine: that contracts the block.
        block: the block.
        labels: log-factors by site; the others' are zero.
    """
    stand_in = {s.name: Factor(torch.zeros(()), ()) for s in block.sites}
    return engine.expected(block, {**stand_in, **labels}).weights  # type: ignore[attr-defined]


def _sliced_labels(block: Block, generator: torch.Generator, kind: str) -> dict[str, Factor]:
    """Soft labels for a chain of several latents: by the data where these belong to one latent alone, else random."""
    slices = block.slices
    assert slices is not None
    dims, done, labels = (*slices.plates, slices.time), set(), {}
    shape = [block.sizes[d] for d in dims]
    for site in block.sites:
        if site.role != "observed" or site.name not in block.times or not _full(block, site):
            continue
        alone = len(site.scope) == 1 and set(dims) <= set(site.value.dims)
        for dim in set(slices.now) & set(site.scope) - done:
            size = block.sizes[dim]
            own = _labels(block, site, dims, dim, generator, kind) if alone else None
            found = torch.randint(size, shape, generator=generator) if own is None else own
            soft = _soft(found, dim, size, dims)
            labels[site.name] = labels[site.name] + soft if site.name in labels else soft
            done.add(dim)
    for z in slices.outer:
        latent = block.latent(z)
        found = torch.randint(latent.cardinality, [block.sizes[p] for p in latent.plates], generator=generator)
        labels[z] = _soft(found, z, latent.cardinality, latent.plates)
    return labels


def labelled_site(block: Block) -> tuple[Site, str, tuple[str, ...]] | None:
    """An observed site with one value (or vector) for each element of one latent."""
    if block.axis is not None:
        dims, state = (*block.plates, block.axis.time), block.axis.now
    elif len(block.latents) == 1:
        dims, state = block.latents[0].plates, block.latents[0].name
    else:
        return None
    for site in block.sites:
        if site.role == "observed" and site.scope == (state,) and set(dims) <= set(site.value.dims):
            if block.axis is None or len(block.times[site.name]) == block.sizes[block.axis.time]:
                return site, state, dims
    return None


def _soft(labels: Tensor, state: str, size: int, dims: tuple[str, ...]) -> Factor:
    if size == 1:
        return Factor(torch.zeros(*labels.shape, 1), (*dims, state))
    other = (1 - CONFIDENCE) / (size - 1)
    hot = torch.nn.functional.one_hot(labels, size).to(torch.get_default_dtype())
    return Factor((hot * (CONFIDENCE - other) + other).log(), (*dims, state))


def _labels(
    block: Block, site: Site, dims: tuple[str, ...], state: str, generator: torch.Generator, kind: str
) -> Tensor:
    shape, size = [block.sizes[d] for d in dims], block.sizes[state]
    features = site_features(block, site, dims)
    if kind == "window" and block.axis is not None:
        features = _smoothed(features, shape)
    if kind == "quantile":
        return _quantiles(features, size).reshape(shape)
    return kmeans(features, size, generator, steps=0 if kind == "random" else 10, spread=kind != "random").reshape(
        shape
    )


def site_features(block: Block, site: Site, dims: tuple[str, ...]) -> Tensor:
    """What is observed of each element of ``dims``, (elements, features), columns standardised.

    Args:
        block: the block.
        site: an observed site with one value for each element; others with the same latent add their columns.
        dims: plates, and time.
    """
    shape = [block.sizes[d] for d in dims]
    observed = [
        s
        for s in block.sites
        if s.role == "observed" and s.scope == site.scope and set(dims) <= set(s.value.dims) and s.mask is None
    ] or [site]
    columns = [_features(s, dims, shape) for s in observed if _full(block, s)] or [_features(site, dims, shape)]
    features = torch.cat(columns, 1)
    spread = features.std(0, correction=0)
    return (features - features.mean(0)) / torch.where(spread > 0, spread, torch.ones_like(spread))


def _smoothed(features: Tensor, shape: list[int]) -> Tensor:
    """Features (elements, F) averaged over a window of time, the last dimension of ``shape``: states last a while."""
    rows = features.reshape(-1, shape[-1], features.shape[1]).mT
    width = min(WINDOW, 2 * ((shape[-1] - 1) // 2) + 1)
    means = torch.nn.functional.avg_pool1d(rows, width, 1, width // 2, count_include_pad=False)
    return means.mT.reshape(features.shape)


def _quantiles(features: Tensor, parts: int) -> Tensor:
    """Labels (N,) of equal parts along the principal axis of features (N, F)."""
    _, axes = torch.linalg.eigh(features.T @ features)
    order = (features @ axes[:, -1]).argsort(stable=True).argsort(stable=True)
    return order * parts // len(features)


def _full(block: Block, site: Site) -> bool:
    if site.name not in block.times:
        return True
    return len(block.times[site.name]) == block.sizes[slices_of(block).time]


def _features(site: Site, dims: tuple[str, ...], shape: list[int]) -> Tensor:
    value = site.value
    rest = tuple(d for d in value.dims if d not in dims)
    tensor = value.align((*dims, *rest))
    tensor = tensor.expand([*shape, *tensor.shape[len(shape) :]])
    flat = tensor.reshape(int(torch.tensor(shape).prod()), -1)
    categories = site.family is not None and site.family.__name__ == "Categorical"
    if categories and flat.shape[1] == 1 and int(flat.max()) < 200:
        return torch.nn.functional.one_hot(flat[:, 0].long()).double()
    return torch.nan_to_num(without_gaps(flat.double()))


def kmeans(features: Tensor, clusters: int, generator: torch.Generator, steps: int = 10, spread: bool = True) -> Tensor:
    """Labels (N,) of Lloyd's algorithm on features (N, F).

    Args:
        features: what is clustered.
        clusters: number of them.
        generator: randomness.
        steps: of Lloyd's algorithm.
        spread: seeds by k-means++; else data at random.
    """
    count = len(features)
    picked = torch.randperm(count, generator=generator)[:SEED_DATA] if count > SEED_DATA else torch.arange(count)
    seen = features[picked]
    centres = seen[torch.randint(len(seen), (1,), generator=generator)]
    for _ in range(clusters - 1):
        gap = torch.cdist(seen, centres).square().amin(1)
        gap = gap if spread else (gap > 0).to(gap)
        total = float(gap.sum())
        pick = (
            torch.multinomial(gap, 1, generator=generator)
            if total > 0
            else torch.randint(len(seen), (1,), generator=generator)
        )
        centres = torch.cat([centres, seen[pick]])
    for _ in range(steps):
        labels = torch.cdist(seen, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add(0, labels, seen)
        sizes = torch.bincount(labels, minlength=clusters).to(sums)
        centres = torch.where(sizes[:, None] > 0, sums / sizes.clamp_min(1)[:, None], centres)
    return torch.cat([torch.cdist(part, centres).argmin(1) for part in features.split(100_000)])
