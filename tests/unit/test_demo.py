"""The parts of the demonstration that are mathematics or manners; the whole runs in tests/cli."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from ppl_em import demo


@pytest.mark.parametrize("mass", [0.5, 0.95])
def test_the_ellipse_is_the_contour_that_holds_its_mass(mass: float) -> None:
    loc, cov = np.array([1.0, -2.0]), np.array([[2.0, 0.9], [0.9, 0.7]])
    points = demo.ellipse(loc, cov, mass).T
    distance = np.einsum("ni,ij,nj->n", points - loc, np.linalg.inv(cov), points - loc)
    assert np.allclose(stats.chi2(2).cdf(distance), mass, atol=1e-12)


def test_another_ones_directory_is_left_alone(tmp_path: Path) -> None:
    assert demo._free_directory(tmp_path).name == "ppl-em-demo"
    (tmp_path / "ppl-em-demo").mkdir()
    (tmp_path / "ppl-em-demo" / demo.PICTURE).write_text("")
    assert demo._free_directory(tmp_path).name == "ppl-em-demo"
    (tmp_path / "ppl-em-demo" / "thesis.txt").write_text("")
    (tmp_path / "ppl-em-demo-2").write_text("a file")
    assert demo._free_directory(tmp_path).name == "ppl-em-demo-3"
