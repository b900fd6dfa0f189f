"""A real browser opens reports and prints them: no console message, no request, nothing over anything else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import ppl_em
from models import gmm, hmm, vae
from tests.unit.report.browser import CHROMIUM, OVERLAPS, OVERLAPS_IN_PICTURES, Browser

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")]
WIDTHS = (390, 820, 1400)


def fitted(which: str) -> ppl_em.FitResult:
    """A mixture, a chain, an autoencoder."""
    if which == "mixture":
        return ppl_em.fit(gmm.model, gmm.load(), restarts=2)
    if which == "chain":
        return ppl_em.fit(hmm.model, hmm.load(), restarts=2)
    vae.decoder.load_state_dict(vae.new_decoder().state_dict())
    return ppl_em.fit(vae.model, vae.load()[:600], method=ppl_em.SVI(max_steps=400, batch_size=100, validation=0.1))


@pytest.fixture(scope="module", params=["mixture", "chain", "autoencoder"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield fitted(request.param).report(tmp_path_factory.mktemp(request.param) / f"{request.param}.html")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_it_opens(browser: Browser, page: Path, tmp_path: Path, width: int) -> None:
    browser.messages.clear()
    browser.requests.clear()
    browser.open(page.as_uri(), width)
    browser.screenshot(tmp_path / f"{page.stem}_{width}.png")
    assert (tmp_path / f"{page.stem}_{width}.png").stat().st_size > 50_000
    assert browser.messages == []
    assert [r for r in browser.requests if not r.startswith("data:")] == [page.as_uri()]
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert json.loads(browser.evaluate(OVERLAPS)) == []


def test_no_text_lies_over_another_in_a_picture(browser: Browser, page: Path) -> None:
    browser.open(page.as_uri(), 1400)
    assert browser.evaluate("document.images.length") >= 5
    assert json.loads(browser.evaluate(OVERLAPS_IN_PICTURES)) == []


def test_it_prints(browser: Browser, page: Path, tmp_path: Path) -> None:
    browser.open(page.as_uri(), 820)
    browser.pdf(tmp_path / "report.pdf")
    content = (tmp_path / "report.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert 3 <= content.count(b"/Type /Page\n") + content.count(b"/Type /Page ") <= 14


def test_the_probe_finds_what_lies_over_another(browser: Browser, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<body><p style='margin:0'>first</p><p style='margin-top:-15px'>second</p><script>console.log(1)</script>"
    )
    browser.messages.clear()
    browser.open(bad.as_uri(), 800)
    assert json.loads(browser.evaluate(OVERLAPS)) == [["first", "second"]]
    assert browser.messages
