"""Pictures and report of hidden structures: what they show is the posterior's best tree and alignment."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nltk
import pytest
import torch
from torch import nn

import ppl_em
from ppl_em.errors import PplEmError
from tests.structured import programs
from tests.unit.distributions.brute_force import bracketed, scored_trees

VOCABULARY = ("alpha", "beta", "gamma")
SHORT = ppl_em.EM(max_steps=3, tol=0)


@pytest.fixture
def parsed() -> ppl_em.FitResult:
    start = programs.tables(1)
    coords = {"words": VOCABULARY}
    return ppl_em.fit(programs.grammar, programs.SENTENCES, start, init="params", method=SHORT, coords=coords)


@pytest.fixture
def aligned() -> ppl_em.FitResult:
    frames, used = torch.randn(3, 2, 7), torch.tensor([7, 5, 6])
    labels = torch.tensor([[1, 2, 2], [2, -1, -1], [1, 1, -1]])
    return ppl_em.fit(programs.aligned, frames, used, labels, nn.Conv1d(2, 3, 3, padding=1), method=SHORT)


@pytest.mark.parametrize("row", [0, 2, 5])
def test_a_tree_is_the_most_probable_one(parsed: ppl_em.FitResult, row: int) -> None:
    ax = parsed.plot("trees", row=row)
    words = [word for word in programs.SENTENCES[row].tolist() if word >= 0]
    tables = programs.PCFG(*(parsed.params[n] for n in ("root", "rules", "emissions")), validate_args=False)
    trees = scored_trees(tables, words)
    scores = torch.tensor([log_prob for log_prob, *_ in trees])
    best = nltk.Tree.fromstring(bracketed(trees[int(scores.argmax())][1], words, programs.NT))
    assert sorted(t.get_text() for t in ax.texts) == sorted(t.label() for t in best.subtrees())
    assert [t.get_text() for t in ax.get_xticklabels()] == [VOCABULARY[word] for word in words]
    assert len(ax.lines) == len(best.treepositions()) - 1  # one line for each child, words included
    share = f"{float(scores.softmax(0).max()):.0%}"
    assert ax.get_title(loc="left") == f"words[{row}]: the best parse has {share} of the probability of all"


def test_symbols_of_a_tree_can_be_named(parsed: ppl_em.FitResult) -> None:
    ax = parsed.plot("trees", row=0, symbols=("S", "T", "X", "Y"))
    assert {t.get_text() for t in ax.texts} <= {"S", "T", "X", "Y"}


@pytest.mark.parametrize("row", [0, 1, 2])
def test_an_alignment_shows_probabilities_and_the_best_path(aligned: ppl_em.FitResult, row: int) -> None:
    ax = aligned.plot("alignments", row=row)
    posterior = aligned.posterior().structure("labels")
    best = posterior.mode()
    spelling = [["–", "1", "–", "2", "–", "2", "–"], ["–", "2", "–"], ["–", "1", "–", "1", "–"]][row]
    assert [t.get_text() for t in ax.get_yticklabels()] == spelling
    shown = torch.from_numpy(ax.images[0].get_array().filled()).T
    frames = [7, 5, 6][row]
    torch.testing.assert_close(shown, posterior.state_marginals()[row, :frames, : len(spelling)])
    path = ax.lines[0].get_ydata()
    classes = [0 if spelling[int(state)] == "–" else int(spelling[int(state)]) for state in path]
    assert classes == best.classes[row, :frames].tolist()
    steps = torch.tensor(path).diff()
    assert ((steps >= 0) & (steps <= 2)).all()


def test_what_cannot_be_drawn_is_refused_by_name(parsed: ppl_em.FitResult, aligned: ppl_em.FitResult) -> None:
    with pytest.raises(PplEmError, match="no observed site with CTC"):
        parsed.plot("alignments")
    with pytest.raises(PplEmError, match="no observed site with PCFG"):
        aligned.plot("trees")
    start = programs.tables(1)
    long = torch.zeros(1, 30, dtype=torch.int64)
    result = ppl_em.fit(programs.grammar, long, start, init="params", method=ppl_em.EM(max_steps=0))
    with pytest.raises(PplEmError, match="a sentence of 30 words is too long"):
        result.plot("trees")
    two = ppl_em.fit(programs.two_grammars, programs.SENTENCES, programs.tables(1, 2), init="params", method=SHORT)
    with pytest.raises(PplEmError, match="depends on no summed latent"):
        two.plot("trees")


def test_the_report_has_a_page_of_trees(parsed: ppl_em.FitResult, tmp_path: Path) -> None:
    page = parsed.report(tmp_path / "trees.html").read_text(encoding="utf-8")
    assert "<h3>Parse trees</h3>" in page
    assert len(re.findall('alt="Parse trees. words', page)) == 3
    assert '<a href="#latents">' in page
    (row,) = json.loads((tmp_path / "trees.json").read_text(encoding="utf-8"))["structures"]
    posterior = parsed.posterior().structure("words")
    assert row["elements"] == 6
    assert row["mean entropy, nats"] == pytest.approx(float(posterior.entropy().mean()))
    best = torch.tensor([tree.log_prob for tree in posterior.mode()])
    assert row["mean probability of the best"] == pytest.approx(float((best - posterior.log_z).exp().mean()))


def test_the_report_has_a_page_of_alignments(aligned: ppl_em.FitResult, tmp_path: Path) -> None:
    page = aligned.report(tmp_path / "alignments.html").read_text(encoding="utf-8")
    assert len(re.findall('alt="Alignments. labels', page)) == 2  # a single label is no picture
    (row,) = json.loads((tmp_path / "alignments.json").read_text(encoding="utf-8"))["structures"]
    assert row["structure of"] == "CTC"
