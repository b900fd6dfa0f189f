"""Data without any hidden structure: −inf in `log_prob`, a named error in `fit`, never a NaN."""

from __future__ import annotations

from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Categorical, constraints
from torch import Tensor, nn

import ppl_em
from ppl_em.distributions import CTC, PCFG
from ppl_em.errors import DataError
from tests.structured import programs
from tests.unit.distributions.brute_force import scored_trees

SENTENCES = torch.tensor([[0, 1], [1, 0], [0, 1], [2, 2]])
METHODS = {"em": ppl_em.EM(max_steps=3), "svi": ppl_em.SVI(max_steps=3), "auto": "auto"}


def only() -> dict[str, Tensor]:
    """S → A B, A → "a", B → "b": one sentence, "a b"."""
    rules = torch.zeros(2, 4, 4)
    rules[:, 2, 3] = 1.0
    return {"root": torch.tensor([1.0, 0.0]), "rules": rules, "emissions": torch.eye(3)[:2]}


def grammar() -> PCFG:
    return PCFG(**only(), validate_args=False)


def test_the_density_is_zero_and_its_derivative_finite() -> None:
    leaves = {name: table.clone().requires_grad_() for name, table in only().items()}
    log_prob = PCFG(**leaves, validate_args=False).log_prob(SENTENCES)
    assert log_prob.isneginf().tolist() == [False, True, False, True]
    for slope in torch.autograd.grad(log_prob.sum(), list(leaves.values())):
        assert slope.isfinite().all()
    counts = grammar().expected_counts(SENTENCES)
    assert counts["rules"].sum() == 2


@pytest.mark.parametrize("method", METHODS)
def test_sentences_that_cannot_be_derived_are_named(method: str) -> None:
    with pytest.raises(DataError) as error:
        ppl_em.fit(programs.grammar, SENTENCES, only(), init="params", method=METHODS[method])
    text = str(error.value)
    assert "2 of 4 data have probability zero under PCFG" in text
    assert "'words'" in text
    assert "sentences 1, 3" in text
    assert "Try" in text


@pytest.mark.parametrize("method", METHODS)
def test_lines_with_more_labels_than_frames_are_named(method: str) -> None:
    network, frames = nn.Conv1d(2, 3, 1), torch.randn(3, 2, 4)
    labels = torch.tensor([[1, 2, 1], [1, 1, 1], [2, -1, -1]])  # 1 1 1 needs five frames: blanks between
    with pytest.raises(DataError) as error:
        ppl_em.fit(programs.aligned, frames, torch.tensor([4, 4, 0]), labels, network, method=METHODS[method])
    text = str(error.value)
    assert "2 of 3 data have probability zero under CTC" in text
    assert "lines 1, 2" in text
    assert "fewer frames than labels and blanks between equal labels" in text
    assert all(weight.isfinite().all() for weight in network.parameters())


def test_iterate_names_them_too() -> None:
    with pytest.raises(DataError, match="sentences 1, 3"):
        next(iter(ppl_em.iterate(programs.grammar, SENTENCES, only(), init="params", method=METHODS["em"])))


def test_what_a_mask_leaves_out_may_be_impossible() -> None:
    mask, start = torch.tensor([True, False, True, False]), only()

    def masked(sentences: Tensor) -> None:
        emissions = pyro.param(
            "emissions", torch.tensor([[0.5, 0.5, 0.0], [0.1, 0.9, 0.0]]), constraint=constraints.simplex
        )
        with pyro.plate("sentences", len(sentences)), pyro.poutine.mask(mask=mask):
            pyro.sample("words", PCFG(start["root"], start["rules"], emissions), obs=sentences)

    result = ppl_em.fit(masked, SENTENCES, init="params", method=ppl_em.EM(max_steps=2, tol=0, accelerate=False))
    torch.testing.assert_close(result.params["emissions"], start["emissions"])
    assert result.objective == pytest.approx(0.0, abs=1e-12)


def test_what_one_grammar_cannot_derive_another_may() -> None:
    """Impossible under one value of a latent: that value has no share, and the counts stay finite."""
    free = programs.tables(1)
    start: dict[str, Tensor] = {name: torch.stack([only()[name], free[name]]) for name in free}

    def choose(sentences: Tensor) -> None:
        weight = pyro.param("weight", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
        emissions = pyro.param("emissions", start["emissions"], constraint=constraints.simplex)
        with pyro.plate("sentences", len(sentences)):
            z = pyro.sample("language", Categorical(weight))
            pyro.sample("words", PCFG(start["root"][z], start["rules"][z], emissions[z]), obs=sentences)

    options: dict[str, Any] = {"init": "params", "method": ppl_em.EM(max_steps=1, tol=0, accelerate=False)}
    result = ppl_em.fit(choose, SENTENCES, **options)
    scores = torch.full((2, 4), -torch.inf)
    for z in range(2):
        tables = PCFG(*(start[name][z] for name in ("root", "rules", "emissions")), validate_args=False)
        for i, words in enumerate(SENTENCES.tolist()):
            trees = [log_prob for log_prob, *_ in scored_trees(tables, words)]
            scores[z, i] = torch.tensor(trees or [-torch.inf]).logsumexp(0)
    assert scores.isneginf().any()
    joint = scores + torch.tensor(0.5).log()
    assert float(result.history[0]) == pytest.approx(float(joint.logsumexp(0).sum()), abs=1e-9)
    torch.testing.assert_close(result.params["weight"], joint.softmax(0).mean(1))
    assert result.params["emissions"].isfinite().all()


def test_their_posterior_is_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"cannot derive 2 sentences.*\[\(1,\), \(3,\)\]"):
        grammar().posterior(SENTENCES)
    with pytest.raises(DataError, match="label sequences have no alignment"):
        CTC(torch.zeros(2, 3)).posterior(torch.tensor([1, 1]))


def test_new_data_that_are_impossible_have_no_probability() -> None:
    result = ppl_em.fit(programs.grammar, SENTENCES[[0, 2]], only(), init="params", method=ppl_em.EM(max_steps=2))
    found = result.log_prob(SENTENCES, only())
    assert found.isneginf().tolist() == [False, True, False, True]
