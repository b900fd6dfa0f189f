"""What the README shows works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
import torch

from ppl_em import arviz_bridge
from tests.tolerances import PUBLISHED

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_quick_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {"x": torch.as_tensor(pd.read_csv(ROOT / "models" / "data" / "faithful.csv").to_numpy())}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102
    assert float(names["result"].objective) == pytest.approx(-1130.264068, abs=PUBLISHED)
    assert names["z"].probs.shape == (272, 2)
    assert arviz_bridge.load(tmp_path / "fit.nc")


def test_the_files_it_names_exist() -> None:
    for name in re.findall(r"models/[\w/]+\.(?:py|csv|md)", README):
        assert (ROOT / name).is_file(), name
