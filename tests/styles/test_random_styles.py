"""Random small programs in random styles: log Z, its gradient and all marginals are those of every assignment, run."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.styles.checks import check_style
from tests.styles.generator import EXTRAS, LATENTS, LAYOUTS, OBSERVATIONS, PICKS, StyleProgram

SEEDS = st.integers(0, 10**6)
CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large]


def equals_brute_force(seed: int) -> None:
    program = StyleProgram(seed)
    try:
        check_style(program, program.data, scale=program.scale)
    except Exception as error:
        error.add_note(str(program))
        raise


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=CHECKS)
@given(SEEDS)
def test_random_programs_equal_brute_force(seed: int) -> None:
    equals_brute_force(seed)


@pytest.mark.slow
@settings(max_examples=320, deadline=None, suppress_health_check=CHECKS)
@given(SEEDS)
def test_hundreds_of_random_programs_equal_brute_force(seed: int) -> None:
    equals_brute_force(seed)


def test_every_style_is_drawn() -> None:
    drawn = [StyleProgram(seed).choices for seed in range(300)]
    assert {c["layout"] for c in drawn} == set(LAYOUTS)
    assert {p for c in drawn for p in c["picks"]} == set(PICKS)
    assert {z for c in drawn for z in c["latents"]} == set(LATENTS)
    assert {e for c in drawn for e in c["extras"]} == set(EXTRAS)
    assert {c["observation"] for c in drawn} == set(OBSERVATIONS)
