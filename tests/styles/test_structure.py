"""Whatever the structure, log Z and marginals are those of brute force."""

from __future__ import annotations

import pytest

from tests.styles.checks import check_steps, check_style
from tests.styles.programs_structure import PROGRAMS


@pytest.mark.parametrize("style", PROGRAMS)
def test_equals_brute_force(style: str) -> None:
    model, args, *options = PROGRAMS[style]
    check_style(model, *args, **(options[0] if options else {}))


@pytest.mark.parametrize("style", PROGRAMS)
def test_em_ascends(style: str) -> None:
    model, args, *options = PROGRAMS[style]
    check_steps(model, *args, **(options[0] if options else {}))
