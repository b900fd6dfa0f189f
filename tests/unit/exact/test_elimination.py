"""General elimination: slicing, unrolled plates and every query against brute force."""

from __future__ import annotations

import math

import pytest
import torch

from ppl_em.exact.brute_force import brute_force
from ppl_em.exact.contraction import Crossing, plan_contraction
from ppl_em.exact.elimination import Elimination, scopes_of
from ppl_em.exact.elimination_order import cheapest_order, greedy_order, order_cost
from ppl_em.exact.slicing import Slicing
from ppl_em.ir import Factor, Latent, Site
from ppl_em.ir.block import Block
from tests.tolerances import BRUTE_FORCE


def block_of(
    latents: dict[str, tuple[int, tuple[str, ...]]],
    sites: dict[str, tuple[tuple[str, ...], tuple[str, ...]]],
    plates: dict[str, int],
) -> tuple[Block, dict[str, Factor]]:
    """A block with random factors: latents as name → (values, plates), sites as name → (scope, plates)."""
    found = tuple(Latent(z, "discrete", p, support=torch.arange(k)) for z, (k, p) in latents.items())
    made = tuple(
        Site(n, "factor", s, p, s + p, (), None, {}, Factor(torch.zeros(()), ())) for n, (s, p) in sites.items()
    )
    shared = tuple(p for p in plates if all(p in z.plates for z in found))
    sizes = {**{z: k for z, (k, _) in latents.items()}, **plates}
    generator = torch.Generator().manual_seed(11)
    factors = {
        s.name: Factor(torch.randn([sizes[d] for d in s.dims], generator=generator, dtype=torch.float64), s.dims)
        for s in made
    }
    return Block(found, made, shared, sizes), factors


CASES = {
    "clique": block_of({f"z{i}": (2, ()) for i in range(5)}, {"a": (("z0", "z1", "z2"), ()), "b": (("z2", "z3", "z4"), ()), "c": (("z0", "z4"), ()), "d": (("z1", "z3"), ())}, {}),
    "plate": block_of({f"z{i}": (2, ("p",)) for i in range(3)}, {"a": (("z0", "z1"), ("p",)), "b": (("z1", "z2"), ("p",)), "c": (("z0", "z2"), ("p",))}, {"p": 3}),
    "nested": block_of({"t": (2, ()), "g": (2, ("p",)), "m": (3, ("p", "q"))}, {"a": (("t",), ()), "b": (("t", "g"), ("p",)), "c": (("g", "m"), ("p", "q")), "d": (("t", "m"), ("p", "q"))}, {"p": 2, "q": 2}),
    "crossed": block_of({"t": (2, ()), "a": (2, ("p",)), "b": (3, ("q",)), "c": (2, ("p", "q"))}, {"f": (("t", "a"), ("p",)), "g": (("b",), ("q",)), "h": (("a", "b", "c"), ("p", "q"))}, {"p": 2, "q": 2}),
}  # fmt: skip
SLICINGS = {
    "clique": (Slicing(("z0",)), Slicing(("z0", "z4"))),
    "plate": (Slicing((), 2), Slicing(("z1",), 3)),
    "nested": (Slicing(("t",)),),
    "crossed": (Slicing(("t",)),),
}
ALL = [(c, s) for c, more in SLICINGS.items() for s in (Slicing(), *more)]


@pytest.mark.parametrize(
    ("case", "slicing"), ALL, ids=lambda v: v if isinstance(v, str) else "+".join(v.latents) or f"{v.chunks}"
)
def test_every_query_equals_brute_force(case: str, slicing: Slicing) -> None:
    block, factors = CASES[case]
    engine = Elimination(slicing)
    log_z, marginals = brute_force(block, factors)
    assert float(engine.log_z(block, factors).tensor.sum() - log_z) == pytest.approx(0, abs=BRUTE_FORCE)
    expected = engine.expected(block, factors)
    assert float(expected.log_z.tensor.sum() - log_z) == pytest.approx(0, abs=BRUTE_FORCE)
    posterior = engine.posterior(block, factors)
    for z in block.latents:
        found = posterior.marginal(z.name).align((*z.plates, z.name))
        assert torch.allclose(found, marginals[z.name].align((*z.plates, z.name)), atol=BRUTE_FORCE)
    leaves = {n: Factor(f.tensor.clone().requires_grad_(True), f.dims) for n, f in factors.items()}
    total = engine.log_z(block, leaves).tensor.sum()
    grads = torch.autograd.grad(total, [f.tensor for f in leaves.values()])
    for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
        weights = expected.weights[name].factor.align(leaf.dims)
        assert torch.allclose(weights, grad, atol=BRUTE_FORCE)


@pytest.mark.parametrize(
    ("case", "slicing"), ALL, ids=lambda v: v if isinstance(v, str) else "+".join(v.latents) or f"{v.chunks}"
)
def test_mode_draws_and_entropy(case: str, slicing: Slicing) -> None:
    block, factors = CASES[case]
    from ppl_em.exact.brute_force import assignments, log_joint

    posterior = Elimination(slicing).posterior(block, factors)
    chosen = list(assignments(block))
    joint = torch.stack([log_joint(block, factors, c) for c in chosen])
    best = chosen[int(joint.argmax())]
    mode = posterior.mode()
    for z in block.latents:
        for element, value in best[z.name].items():
            assert int(mode[z.name].align(z.plates)[element]) == value
    probabilities = torch.softmax(joint, 0)
    entropy = -float((probabilities * probabilities.log()).sum())
    assert float(posterior.entropy().tensor.sum()) == pytest.approx(entropy, abs=1e-9)
    count = 4000
    draws = posterior.sample(count, torch.Generator().manual_seed(5))
    for z in block.latents:
        frequency = (
            torch.nn.functional.one_hot(draws[z.name].align(("@draw", *z.plates)), z.cardinality).double().mean(0)
        )
        marginal = posterior.marginal(z.name).align((*z.plates, z.name))
        assert float((frequency - marginal).abs().max()) < 4.5 * math.sqrt(0.25 / count)


def test_a_budget_is_kept_by_slicing() -> None:
    sites = {f"f{i}{j}": ((f"z{i}", f"z{j}"), ("p",)) for i in range(6) for j in range(i)}
    block, factors = block_of({f"z{i}": (3, ("p",)) for i in range(6)}, sites, {"p": 8})
    whole = Elimination()
    budget = whole.cost(block).bytes / 20
    sliced = whole.within(block, budget, math.inf)
    assert sliced.slicing.chunks > 1
    assert sliced.cost(block).bytes <= max(budget, 8 * 2.1 * sum(f.tensor.numel() for f in factors.values()))
    assert torch.allclose(sliced.log_z(block, factors).tensor, whole.log_z(block, factors).tensor, atol=BRUTE_FORCE)


def test_a_single_clique_is_sliced_by_values() -> None:
    sites = {f"f{i}{j}": ((f"z{i}", f"z{j}"), ()) for i in range(7) for j in range(i)}
    block, factors = block_of({f"z{i}": (4, ()) for i in range(7)}, sites, {})
    whole = Elimination()
    sliced = whole.within(block, whole.cost(block).bytes / 10, math.inf)
    assert sliced.slicing.latents
    assert sliced.cost(block).bytes < whole.cost(block).bytes / 10
    a, b = sliced.expected(block, factors), whole.expected(block, factors)
    assert torch.allclose(a.log_z.tensor, b.log_z.tensor, atol=BRUTE_FORCE)
    for name in factors:
        assert torch.allclose(
            a.weights[name].factor.tensor, b.weights[name].factor.align(a.weights[name].factor.dims), atol=BRUTE_FORCE
        )


def test_the_smaller_of_two_crossed_plates_is_unrolled() -> None:
    block, _ = block_of({"a": (2, ("p",)), "b": (2, ("q",))}, {"f": (("a", "b"), ("p", "q"))}, {"p": 50, "q": 3})
    contraction = plan_contraction(block, scopes_of(block))
    assert contraction.unrolled == ("q",)
    assert contraction.largest == pytest.approx(50 * 2 * 2**3)


def test_plates_too_large_to_unroll_are_refused_at_once() -> None:
    block, _ = block_of({"a": (2, ("p",)), "b": (2, ("q",))}, {"f": (("a", "b"), ("p", "q"))}, {"p": 2, "q": 2})
    large = Block(block.latents, block.sites, block.plates, {**block.sizes, "p": 5000, "q": 5000})
    with pytest.raises(Crossing):
        plan_contraction(large, scopes_of(large))
    assert "exponentially" in str(Elimination().reject(large))


def test_the_order_of_a_chain_costs_no_more_than_its_width() -> None:
    names = [f"z{i}" for i in range(200)]
    scopes = [frozenset(pair) for pair in zip(names, names[1:], strict=False)]
    sizes = dict.fromkeys(names, 3)
    order, cost = cheapest_order(names, scopes, sizes)
    assert sorted(order) == sorted(names)
    assert cost.largest == pytest.approx(9)


@pytest.mark.parametrize("seed", range(5))
def test_the_order_is_the_best_of_all_on_small_graphs(seed: int) -> None:
    from itertools import permutations

    generator = torch.Generator().manual_seed(seed)
    names = [f"z{i}" for i in range(6)]
    sizes = {z: int(torch.randint(2, 5, (), generator=generator)) for z in names}
    scopes = [
        frozenset(
            names[int(i)]
            for i in torch.randperm(6, generator=generator)[: 2 + int(torch.randint(2, (), generator=generator))]
        )
        for _ in range(7)
    ]
    best = min(order_cost(order, scopes, sizes).total for order in permutations(names))
    _, found = cheapest_order(names, scopes, sizes)
    assert found.total <= 1.5 * best
    assert order_cost(greedy_order(names, scopes, sizes), scopes, sizes).total >= best
