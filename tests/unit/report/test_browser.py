"""A real browser opens the report and prints it: no console message, no request, a PDF."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

import ppl_em
from models import gmm

CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")]
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--no-first-run",
    "--hide-scrollbars",
)


def chromium(profile: Path, *options: str) -> str:
    """Runs the browser once; what it and the page's console said."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *QUIET, f"--user-data-dir={profile}", "--enable-logging=stderr", "--v=0", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=180)
    return done.stderr


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return ppl_em.fit(gmm.model, gmm.load(), restarts=2).report(tmp_path_factory.mktemp("page") / "report.html")
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("width", [400, 800, 1400])
def test_it_opens_at_three_widths(page: Path, tmp_path: Path, width: int) -> None:
    log, picture = tmp_path / "net.json", tmp_path / "page.png"
    said = chromium(
        tmp_path / "profile",
        f"--log-net-log={log}",
        f"--screenshot={picture}",
        f"--window-size={width},3000",
        page.as_uri(),
    )
    assert picture.stat().st_size > 50_000
    assert "CONSOLE" not in said, said
    requested = [
        event["params"]["url"]
        for event in json.loads(log.read_text())["events"]
        if isinstance(event.get("params"), dict)
        and str(event["params"].get("url", "")).startswith(("http:", "https:", "ws"))
    ]
    assert not requested


def test_the_page_is_never_wider_than_the_window(page: Path, tmp_path: Path) -> None:
    # The browser itself measures, in a frame around an unchanged copy of the page.
    probe = "<script>document.title='width '+document.documentElement.scrollWidth</script>"
    copy = tmp_path / "probed.html"
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{probe}</body>"), encoding="utf-8")
    for width in (500, 800, 1400):
        assert CHROMIUM is not None
        command = [CHROMIUM, *QUIET, f"--user-data-dir={tmp_path / f'p{width}'}", f"--window-size={width},2000"]
        done = subprocess.run(
            [*command, "--dump-dom", copy.as_uri()], capture_output=True, text=True, check=True, timeout=180
        )
        measured = int(done.stdout.split("<title>width ")[1].split("<")[0])
        assert measured <= width


def test_it_prints(page: Path, tmp_path: Path) -> None:
    target = tmp_path / "report.pdf"
    chromium(tmp_path / "profile", "--no-pdf-header-footer", f"--print-to-pdf={target}", page.as_uri())
    content = target.read_bytes()
    assert content.startswith(b"%PDF")
    assert 3 <= content.count(b"/Type /Page\n") + content.count(b"/Type /Page ") <= 12
