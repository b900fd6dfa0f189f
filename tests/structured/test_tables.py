"""Grammars through `fit`: EM by enumeration of all trees, laws of the tables, queries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Dirichlet

import ppl_em
from models import pcfg
from ppl_em.distributions import PCFG
from tests.structured import programs
from tests.tolerances import ASCENT, BRUTE_FORCE, EXACT
from tests.unit.distributions.brute_force import scored_paths, scored_trees

PLAIN = ppl_em.EM(max_steps=1, tol=0, accelerate=False)
NAMES = ("root", "rules", "emissions")


def sentences_of(value: Tensor) -> list[list[int]]:
    return [[word for word in row if word >= 0] for row in value.tolist()]


def by_enumeration(tables: dict[str, Tensor], weights: list[float]) -> tuple[float, dict[str, Tensor]]:
    """Log-likelihood and expected counts of the sentences of `programs`, tree by tree."""
    total, counts = 0.0, {name: torch.zeros_like(tables[name]) for name in NAMES}
    for weight, words in zip(weights, sentences_of(programs.SENTENCES), strict=True):
        trees = scored_trees(PCFG(**tables, validate_args=False), words)
        scores = torch.tensor([log_prob for log_prob, *_ in trees])
        total += weight * float(scores.logsumexp(0))
        for posterior, (_, _, uses) in zip(scores.softmax(0).tolist(), trees, strict=True):
            for (name, index), count in uses.items():
                counts[name][index] += weight * posterior * count
    return total, counts


def normalised(counts: dict[str, Tensor]) -> dict[str, Tensor]:
    dims = {"root": (-1,), "rules": (-2, -1), "emissions": (-1,)}
    return {name: count / count.sum(dims[name], keepdim=True) for name, count in counts.items()}


def close(found: Tensor | float, expected: Tensor | float, atol: float = BRUTE_FORCE) -> None:
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(expected), rtol=0, atol=atol)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_step_normalises_the_expected_counts_of_all_trees(weighted: bool) -> None:
    """The update of Baker (1979), with counts from a list of all trees of each sentence."""
    start = programs.tables(1)
    weights = [2.0, 0.5, 1.0, 3.0, 0.0, 1.5] if weighted else [1.0] * 6
    given = torch.tensor(weights) if weighted else None
    options: dict[str, Any] = {"init": "params", "method": PLAIN, "weights": given}
    result = ppl_em.fit(programs.grammar, programs.SENTENCES, start, **options)
    before, counts = by_enumeration(start, weights)
    close(result.history[0], before)
    updated = normalised(counts)
    for name in NAMES:
        close(result.params[name], updated[name])
    after, _ = by_enumeration(updated, weights)
    close(result.objective, after)
    assert result.exact
    assert result.log_likelihood == result.objective
    assert {result.plan.rule_of(name) for name in NAMES} == {"closed form"}
    assert result.plan.engine_of("words") == "structured"


@pytest.mark.parametrize("seed", range(3))
def test_the_ascent_is_monotone_and_levels_off(seed: int) -> None:
    start = programs.tables(seed)
    method = ppl_em.EM(max_steps=80, tol=0, accelerate=False)
    result = ppl_em.fit(programs.grammar, programs.SENTENCES, start, init="params", method=method)
    assert (result.history.diff() >= -ASCENT * result.history[0].abs()).all()
    assert result.history[-1] > result.history[0] + 1
    assert result.history[-1] - result.history[-2] < 1e-2 * (result.history[2] - result.history[1])


def test_acceleration_ends_at_least_as_high() -> None:
    start = programs.tables(3)
    methods = {way: ppl_em.EM(max_steps=60, tol=0, accelerate=way == "fast") for way in ("fast", "slow")}
    fast, slow = (
        ppl_em.fit(programs.grammar, programs.SENTENCES, start, init="params", method=m) for m in methods.values()
    )
    assert fast.objective > slow.objective - 1e-6
    assert (fast.history.diff() >= -ASCENT * fast.history[0].abs()).all()


def test_zeros_of_a_table_are_structure_and_stay() -> None:
    start = programs.tables(2)
    start["rules"][0, 0] = 0
    start["emissions"][1, 2] = 0
    start = {**start, **normalised({name: start[name] for name in NAMES})}
    result = ppl_em.fit(programs.grammar, programs.SENTENCES, start, restarts=3, method=ppl_em.EM(max_steps=20))
    assert not result.params["rules"][0, 0].any()
    assert result.params["emissions"][1, 2] == 0
    assert all(not restart.params["rules"][0, 0].any() for restart in result.restarts)


def test_a_frozen_table_stays_and_the_others_move_as_without_it() -> None:
    start = programs.tables(4)
    options: dict[str, Any] = {"init": "params", "method": PLAIN, "freeze": ("emissions",)}
    result = ppl_em.fit(programs.grammar, programs.SENTENCES, start, **options)
    updated = normalised(by_enumeration(start, [1.0] * 6)[1])
    close(result.params["emissions"], start["emissions"], EXACT)
    close(result.params["rules"], updated["rules"])
    assert result.num_parameters == 1 + 2 * 15


def test_a_spelling_through_softmax_is_a_closed_form_too() -> None:
    import pyro
    from pyro.distributions import constraints

    start = programs.tables(5)

    def spelled(sentences: Tensor) -> None:
        root = pyro.param("root_logits", start["root"].log()).softmax(-1)
        rules = pyro.param("rule_logits", start["rules"].flatten(1).log()).softmax(-1)
        emissions = pyro.param("weights", 7 * start["emissions"], constraint=constraints.positive)
        grammar = PCFG(root, rules.reshape(2, 4, 4), emissions / emissions.sum(-1, keepdim=True))
        with pyro.plate("sentences", len(sentences)):
            pyro.sample("words", grammar, obs=sentences)

    result = ppl_em.fit(spelled, programs.SENTENCES, init="params", method=PLAIN)
    assert result.plan.rule_of("rule_logits") == "closed form"
    updated = normalised(by_enumeration(start, [1.0] * 6)[1])
    close(result.params["root_logits"].softmax(-1), updated["root"])
    close(result.params["rule_logits"].softmax(-1).reshape(2, 4, 4), updated["rules"])
    weights = result.params["weights"]
    close(weights / weights.sum(-1, keepdim=True), updated["emissions"])


def test_two_grammars_and_a_choice_between_them() -> None:
    """A latent outside the structure: the sentence's grammar is summed too, and its share updated."""
    start = programs.tables(6, 2)
    result = ppl_em.fit(programs.two_grammars, programs.SENTENCES, start, init="params", method=PLAIN)
    scores = []
    for z, share in enumerate([0.4, 0.6]):
        one = PCFG(*(start[name][z] for name in NAMES), validate_args=False)
        each = [torch.tensor([t[0] for t in scored_trees(one, w)]) for w in sentences_of(programs.SENTENCES)]
        scores.append(torch.stack([s.logsumexp(0) for s in each]) + torch.tensor(share).log())
    joint = torch.stack(scores)
    close(result.history[0], joint.logsumexp(0).sum())
    shares = joint.softmax(0)
    close(result.params["weight"], shares.mean(1))
    for z in range(2):
        updated = normalised(by_enumeration({name: start[name][z] for name in NAMES}, shares[z].tolist())[1])
        for name in NAMES:
            close(result.params[name][z], updated[name])
    assert result.plan.engine_of("language") == "mixture"
    assert result.plan.engine_of("words") == "structured"


def test_scores_shared_by_all_lines_have_the_closed_form_of_their_alignments() -> None:
    start, labels = torch.randn(4, 3), torch.tensor([[1, 2], [1, -1], [2, 2]])
    result = ppl_em.fit(programs.shared_frames, labels, start, init="params", method=PLAIN)
    assert result.plan.rule_of("logits") == "closed form"
    total, counts = 0.0, torch.zeros(4, 3)
    paths = scored_paths(start.log_softmax(-1), 0)
    for row in ((1, 2), (1,), (2, 2)):
        spelled = [(log_prob, path) for log_prob, path, collapsed in paths if collapsed == row]
        scores = torch.tensor([log_prob for log_prob, _ in spelled])
        total += float(scores.logsumexp(0))
        for weight, (_, path) in zip(scores.softmax(0), spelled, strict=True):
            counts[torch.arange(4), list(path)] += weight
    close(result.history[0], total)
    close(result.params["logits"].softmax(-1), counts / 3)


def test_restarts_draw_tables_and_a_uniform_start_is_left() -> None:
    """With uniform tables all symbols are alike, and EM would never tell them apart: a saddle."""
    start = {"root": torch.ones(2) / 2, "rules": torch.ones(2, 4, 4) / 16, "emissions": torch.ones(2, 3) / 3}
    stuck = ppl_em.fit(
        programs.grammar, programs.SENTENCES, start, init="params", method=ppl_em.EM(max_steps=50, tol=0)
    )
    close(stuck.params["emissions"][0], stuck.params["emissions"][1], EXACT)
    free = ppl_em.fit(programs.grammar, programs.SENTENCES, start, restarts=4, method=ppl_em.EM(max_steps=50, tol=0))
    assert min(restart.objective for restart in free.restarts) > stuck.objective + 1
    assert len({round(restart.objective, 6) for restart in free.restarts}) > 1


def test_queries_of_a_fitted_grammar(no_footprint: Any) -> None:
    start = programs.tables(1)
    method = ppl_em.EM(max_steps=20, tol=0)
    with no_footprint():
        result = ppl_em.fit(programs.grammar, programs.SENTENCES, start, init="params", method=method)
        posterior = result.posterior().structure("words")
        alone = result.posterior().structure("words", first=2)
    fitted = PCFG(*(result.params[name] for name in NAMES), validate_args=False)
    close(result.log_prob(), fitted.log_prob(programs.SENTENCES))
    close(result.log_prob(programs.SENTENCES[:2], start), fitted.log_prob(programs.SENTENCES[:2]))
    for parse, words in zip(posterior.mode(), sentences_of(programs.SENTENCES), strict=True):
        trees = scored_trees(fitted, words)
        assert parse.log_prob == pytest.approx(max(log_prob for log_prob, *_ in trees))
    close(alone.log_z, posterior.log_z[:2])
    assert [t.bracketed() for t in alone.mode()] == [t.bracketed() for t in posterior.mode()[:2]]
    drawn = result.predict(num_samples=5, seed=1)["words"]
    assert drawn.shape[:2] == (5, 6)
    assert fitted.log_prob(drawn).isfinite().all()


def test_predictive_draws_have_the_lengths_that_the_grammar_gives() -> None:
    """S → S S (1/4) | A A (3/4): words come in pairs, the number of pairs of a Galton–Watson tree."""
    sentences = torch.tensor([[0, 0, -1, -1], [0, 0, 0, 0], [0, 0, -1, -1], [0, 0, -1, -1]]).repeat(10, 1)
    start = {"root": torch.ones(1), "rules": torch.zeros(1, 2, 2), "emissions": torch.ones(1, 1)}
    start["rules"][0, 0, 0], start["rules"][0, 1, 1] = 0.25, 0.75
    result = ppl_em.fit(programs.grammar, sentences, start, freeze=NAMES, restarts=1)
    drawn = result.predict(num_samples=100, latents="prior", seed=3)["words"]
    lengths = (drawn >= 0).sum(-1).double()
    assert not lengths.fmod(2).any()
    # The mean number of leaf pairs of a binary branching process with probability p of branching is (1 − p)/(1 − 2p).
    error = lengths.std() / lengths.numel() ** 0.5
    assert abs(lengths.mean() - 2 * 0.75 / 0.5) < 4 * error
    check = result.predictive_check.table().set_index(["column", "statistic"])
    assert check.loc[("length", "mean"), "observed"] == 2.5
    assert check.loc[("different symbols", "largest"), "observed"] == 1


def test_random_start_is_a_simplex_and_reproducible() -> None:
    sentences = pcfg.palindromes(20, longest=4)
    method = ppl_em.EM(max_steps=3, tol=0)
    first, second = (ppl_em.fit(pcfg.model, sentences, restarts=3, method=method, seed=5) for _ in range(2))
    assert first.objective == second.objective
    assert first.params["rules"].sum(-1).allclose(torch.ones(3))
    other = ppl_em.fit(pcfg.model, sentences, restarts=3, method=method, seed=6)
    assert other.objective != first.objective
    assert Dirichlet.support.check(other.params["rules"]).all()
