"""Predicted cost beside measured cost; the machine's speed is measured once and kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import ppl_em
from models import dawid_skene, gmm, hmm, latent_classes, mixture_of_regressions
from ppl_em import machine_speed
from ppl_em.analysis import peak_bytes
from ppl_em.errors import PlanError
from tests.unit.programs import mixture, two_kinds


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ppl_em" / "speed.json"


def test_peak_bytes_counts_what_is_alive_at_once() -> None:
    def run() -> None:
        first = torch.zeros(1000, dtype=torch.float64)
        second = first + 1  # both are alive
        del first
        (second * 2).sum()

    assert 16_000 <= peak_bytes(run) <= 16_100


def test_the_machine_is_measured_once(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = machine_speed.speeds()
    assert set(speeds) == {"mixture", "chain", "elimination"}
    assert all(s.seconds > 0 and s.per_flop >= 0 for s in speeds.values())
    assert len(json.loads(own_cache.read_text())) == 1

    def again() -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(machine_speed, "_measure", again)
    assert machine_speed.speeds() == speeds
    own_cache.write_text("not json")
    with pytest.raises(AssertionError, match="measured again"):
        machine_speed.speeds()


ZOO = {
    "gmm": gmm,
    "hmm": hmm,
    "latent classes": latent_classes,
    "observers": dawid_skene,
    "regressions": mixture_of_regressions,
}


@pytest.mark.parametrize("name", ZOO)
def test_bytes_are_predicted_within_a_factor_of_three(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        machine_speed, "_measure", lambda: {n: machine_speed.Speed(1e-3, 1e-9) for n in ("elimination",)}
    )
    data: Any = ZOO[name].load()
    plan = ppl_em.explain(ZOO[name].model, *(data if isinstance(data, tuple) else (data,)))
    found = plan.analyze()
    # Observers' tables are looked up in sparse form, of which less is held than of the density that is foreseen.
    assert 1 / (4 if name == "observers" else 3) <= found.ratios["bytes"] <= 3, str(found)
    assert found.predicted_seconds == pytest.approx(1e-3 + 1e-9 * found.flops)
    assert found.measured_seconds > 0
    text = str(found)
    assert text.count("predicted") == 4
    assert plan.engine_of(plan.blocks[0].block.names[0]) in text


def test_a_plan_without_an_e_step_is_refused() -> None:
    plan = ppl_em.explain(mixture, two_kinds(20), method=ppl_em.Auto(max_flops=1.0))
    with pytest.raises(PlanError, match="no E-step"):
        plan.analyze()
