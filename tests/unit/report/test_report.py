"""The report: complete, self-contained, escaped, repeatable; a fit that cannot be trusted says so first."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_em
from models import gmm, hmm
from ppl_em.errors import FileError
from ppl_em.report.content import collect
from ppl_em.report.write import number, plain


class Page(HTMLParser):
    """What a browser would see: tags, links, text in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and not {"style", "title"} & set(self.open):
            self.text.append(" ".join(data.split()))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> tuple[ppl_em.FitResult, Path]:
    result = ppl_em.fit(gmm.model, gmm.load(), restarts=2)
    return result, result.report(tmp_path_factory.mktemp("report") / "report.html")


def test_the_sections_stand_in_order(mixture: tuple[ppl_em.FitResult, Path]) -> None:
    page = Page(mixture[1].read_text(encoding="utf-8"))
    assert not page.open
    sections = [attrs["id"] for tag, attrs in page.tags if tag == "section"]
    assert sections == [
        *("verdict", "plan", "data", "parameters", "predictive", "loo", "latents", "convergence", "calibration"),
        "environment",
    ]
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert links == [f"#{s}" for s in sections]
    assert page.text[0] == "✓ can be trusted"
    assert page.text[1].startswith("This fit can be trusted")


def test_it_needs_nothing_from_outside(mixture: tuple[ppl_em.FitResult, Path]) -> None:
    text = mixture[1].read_text(encoding="utf-8")
    page = Page(text)
    assert not [tag for tag, _ in page.tags if tag in ("script", "iframe", "object")]
    for tag, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on")]
        if tag == "img":
            source = attrs["src"] or ""
            assert source.startswith("data:image/svg+xml;base64,")
            picture = base64.b64decode(source.split(",", 1)[1]).decode()
            assert not re.findall(r'href="(?!#|data:)', picture) and "<script" not in picture
            assert attrs["alt"]
        if tag == "link":
            assert attrs["href"] == "data:,"
    assert not re.findall(r"url\((?!#)", text)
    assert len(text) < 2_000_000


def test_the_json_beside_it_has_the_same_values(mixture: tuple[ppl_em.FitResult, Path]) -> None:
    result, path = mixture
    values = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert values["fit"]["log_likelihood"] == result.log_likelihood
    assert values["fit"]["bic"] == result.bic
    assert values["verdict"]["ok"] is True and len(values["verdict"]["checks"]) == 12
    rows = {row["parameter"]: row for row in values["parameters"]}
    assert rows["loc[0,1]"]["std_error"] == result.conf_int().loc["loc[0,1]", "std_error"]
    assert values["loo"]["elpd"] == result.loo.elpd
    assert values["environment"]["seed"] == 0
    assert re.fullmatch("[0-9a-f]{64}", values["environment"]["data_sha256"])
    assert f"{rows['loc[0,1]']['std_error']:.4g}" in path.read_text(encoding="utf-8")


def test_the_same_fit_gives_the_same_bytes(
    mixture: tuple[ppl_em.FitResult, Path], tmp_path: Path, no_footprint
) -> None:
    result, path = mixture
    with no_footprint():
        again = result.report(tmp_path / "report.html")
    assert again.read_bytes() == path.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_a_chain_has_its_series(tmp_path: Path) -> None:
    result = ppl_em.fit(hmm.model, hmm.load()[:40], restarts=2)
    page = Page(result.report(tmp_path / "chain.html").read_text(encoding="utf-8"))
    pictures = [attrs["alt"] or "" for tag, attrs in page.tags if tag == "img"]
    assert any("states on the most probable path" in alt for alt in pictures)
    assert "loo" not in {a["id"] for t, a in page.tags if t == "section"} or any(
        "Not to be had" in t for t in page.text
    )


def test_a_fit_that_cannot_be_trusted_says_so_in_its_first_line(tmp_path: Path) -> None:
    result = ppl_em.fit(gmm.model, gmm.load(), init="params", method=ppl_em.EM(max_steps=3, accelerate=False))
    path = result.report(tmp_path / "bad.html")
    page = Page(path.read_text(encoding="utf-8"))
    assert page.text[0] == "✗ do not trust"
    assert page.text[1].startswith("Do not trust this fit")
    assert any(t.startswith("Next: fit(..., init=result)") for t in page.text)


def test_names_are_escaped(tmp_path: Path) -> None:
    def hostile(x: torch.Tensor) -> None:
        loc = pyro.param("<script>alert(1)</script>", torch.tensor(0.0))
        with pyro.plate('"><b>data', len(x)):
            pyro.sample("<img src=x>", dist.Normal(loc, 1.0), obs=x)

    path = ppl_em.fit(hostile, torch.randn(20)).report(tmp_path / "hostile.html")
    page = Page(path.read_text(encoding="utf-8"))
    assert not [tag for tag, _ in page.tags if tag in ("script", "b") and tag != "b"]
    assert all((attrs.get("src") or "").startswith("data:") for tag, attrs in page.tags if tag == "img")
    assert any("<script>alert(1)</script>" in t for t in page.text)


def test_a_users_check_and_title_are_shown(mixture: tuple[ppl_em.FitResult, Path]) -> None:
    from ppl_em.diagnostics import Check, Outcome

    def mine(result: ppl_em.FitResult) -> Check:
        return Check("mine", "Is it mine?", Outcome.FAIL, "it is not", "that it is", "take another", about="model")

    content = collect(mixture[0], (mine,), "A title")
    assert content.values["title"] == "A title"
    assert content.values["verdict"]["word"] == "with care"


def test_a_place_that_cannot_be_written_is_named(mixture: tuple[ppl_em.FitResult, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot write the report"):
        mixture[0].report(tmp_path / "file" / "report.html")


def test_numbers_for_people() -> None:
    shown = [number(v) for v in (0.12345678, -3.0, 1e-12, 123456.0, float("nan"), float("inf"), None, "text")]
    assert shown == ["0.1235", "−3", "1e−12", "123456", "–", "not identified", "–", "text"]
    assert plain({"a": float("nan"), "b": (1, torch.tensor(2.0))}) == {"a": None, "b": [1, 2.0]}
