"""Standard errors against numerical derivatives of the same likelihood written with SciPy, and known results."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import special

import ppl_em
from models import gmm
from ppl_em.errors import PplEmError
from tests.tolerances import EXACT, FINITE_DIFFERENCE
from tests.unit.diagnostics import programs
from tests.unit.diagnostics.numerical import experts as experts_density
from tests.unit.diagnostics.numerical import gaussian_mixture, gradient, hessian


def mixture_vector(named: dict[str, torch.Tensor]) -> np.ndarray:
    covariances = named["cov"]
    return torch.cat(
        [named["weights"][:1], named["loc"].reshape(-1), *(c[[0, 0, 1], [0, 1, 1]] for c in covariances)]
    ).numpy()


def experts_vector(named: dict[str, torch.Tensor]) -> np.ndarray:
    return torch.cat([named[n] for n in ("gate", "intercept", "slope", "scale")]).numpy()


def numerical(density, at: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inverse information, and the sandwich, by differences."""
    step = 0.02 * errors
    bread = np.linalg.inv(-hessian(lambda p: density(p).sum(), at, step))
    scores = gradient(density, at, step)
    return bread, bread @ scores @ scores.T @ bread


@pytest.mark.parametrize("which", ["faithful", "experts"])
def test_standard_errors_are_those_of_a_numerical_hessian(which: str, request: pytest.FixtureRequest) -> None:
    result = request.getfixturevalue(which)
    if which == "faithful":
        vector, density = mixture_vector, gaussian_mixture(gmm.load().numpy())
    else:
        vector, density = experts_vector, experts_density(*(t.numpy() for t in programs.expert_data()))
    at, errors = vector(result.params), vector(result.standard_errors())
    assert density(at).sum() == pytest.approx(result.log_likelihood, abs=1e-8)
    bread, sandwich = numerical(density, at, errors)
    assert np.allclose(errors, np.sqrt(np.diag(bread)), rtol=FINITE_DIFFERENCE)
    robust = vector(result.standard_errors("sandwich"))
    assert np.allclose(robust, np.sqrt(np.diag(sandwich)), rtol=FINITE_DIFFERENCE)


def test_the_covariance_matrix_has_the_labels_errors_and_ties_of_its_elements(faithful) -> None:
    matrix = faithful.vcov()
    errors = faithful.standard_errors()
    assert np.sqrt(matrix.loc["loc[1,0]", "loc[1,0]"]) == pytest.approx(float(errors["loc"][1, 0]), rel=1e-12)
    # The weights add up to one, the covariance matrices are symmetric.
    assert matrix.loc["weights[0]", "weights[1]"] == pytest.approx(-matrix.loc["weights[0]", "weights[0]"], rel=1e-9)
    assert matrix.loc["cov[0,0,1]", "cov[0,1,0]"] == pytest.approx(matrix.loc["cov[0,0,1]", "cov[0,0,1]"], rel=1e-9)


def test_a_normal_sample_has_its_known_errors() -> None:
    x = programs.mixture_data(80, share=0.0)
    result = ppl_em.fit(programs.normal, x)
    scale = float(x.std(correction=0))
    errors = result.standard_errors()
    assert float(errors["loc"]) == pytest.approx(scale / len(x) ** 0.5, rel=1e-9)
    assert float(errors["scale"]) == pytest.approx(scale / (2 * len(x)) ** 0.5, rel=1e-9)
    # The sandwich form of the mean's variance is the sample variance over n, its fourth moment the scale's.
    robust = result.standard_errors("sandwich")
    assert float(robust["loc"]) == pytest.approx(scale / len(x) ** 0.5, rel=1e-9)
    fourth = float(((x - x.mean()) / scale).pow(4).mean())
    assert float(robust["scale"]) == pytest.approx(scale * ((fourth - 1) / (4 * len(x))) ** 0.5, rel=1e-9)


def test_the_delta_method(faithful) -> None:
    assert float(faithful.standard_error(lambda p: p["loc"][0, 1])) == pytest.approx(
        float(faithful.standard_errors()["loc"][0, 1]), rel=1e-12
    )
    matrix = faithful.vcov()
    pair = ["loc[0,0]", "loc[1,0]"]
    difference = np.array([1.0, -1.0])
    expected = np.sqrt(difference @ matrix.loc[pair, pair].to_numpy() @ difference)
    found = faithful.standard_error(lambda p: p["loc"][0] - p["loc"][1])
    assert found.shape == (2,)
    assert float(found[0]) == pytest.approx(expected, rel=1e-9)
    p, error = faithful.params["weights"][0], faithful.standard_errors()["weights"][0]
    assert float(faithful.standard_error(lambda v: v["weights"][0].logit())) == pytest.approx(
        float(error / (p * (1 - p))), rel=1e-9
    )


def test_directions_that_change_nothing_have_no_error_and_the_others_have() -> None:
    x = torch.tensor([0] * 10 + [1] * 30 + [2] * 60)
    result = ppl_em.fit(programs.softmax_counts, x)
    assert result.information.num_unidentified == 1
    assert bool(torch.isinf(result.standard_errors()["logits"]).all())
    shares = torch.tensor([0.1, 0.3, 0.6])
    found = result.standard_error(lambda p: torch.softmax(p["logits"], 0))
    assert torch.allclose(found, (shares * (1 - shares) / 100).sqrt(), rtol=1e-6)
    contrast = result.standard_error(lambda p: p["logits"][1] - p["logits"][0])
    assert float(contrast) == pytest.approx((1 / 10 + 1 / 30) ** 0.5, rel=1e-6)
    assert bool(torch.isinf(result.standard_error(lambda p: p["logits"][1] + p["logits"][0])))


def test_frozen_and_boundary_elements(earthquakes) -> None:
    x = programs.mixture_data(60)
    result = ppl_em.fit(programs.two_normals, x, freeze=["scale"], init="params")
    assert set(result.standard_errors()) == {"weights", "loc"}
    # The first state of a single series is known: its distribution is on the boundary.
    assert bool(torch.isnan(earthquakes.standard_errors()["init"]).all())
    assert bool(torch.isfinite(earthquakes.standard_errors()["trans"]).all())


def test_intervals_stay_within_constraints(faithful, earthquakes) -> None:
    for result in (faithful, earthquakes):
        table = result.conf_int(0.999).dropna()
        inside = (table["lower"] < table["estimate"]) & (table["estimate"] < table["upper"])
        assert bool(inside.all())
        for name in ("weights", "trans"):
            rows = table[table.index.str.startswith(name)]
            assert bool(((rows["lower"] > 0) & (rows["upper"] < 1)).all())
    row = faithful.conf_int(0.95).loc["weights[0]"]
    width = 1.959963984540054 * row["std_error"] / (row["estimate"] * (1 - row["estimate"]))
    assert row["lower"] == pytest.approx(special.expit(special.logit(row["estimate"]) - width), abs=EXACT)
    row = faithful.conf_int(0.95).loc["cov[0,0,0]"]
    assert row["upper"] == pytest.approx(
        row["estimate"] * np.exp(1.959963984540054 * row["std_error"] / row["estimate"]), rel=1e-12
    )
    row = faithful.conf_int(0.95).loc["loc[0,0]"]
    assert row["upper"] - row["estimate"] == pytest.approx(1.959963984540054 * row["std_error"], rel=1e-12)


def test_a_chains_information_is_that_of_differences_of_its_likelihood(earthquakes) -> None:
    from ppl_em.em.e_step import e_step

    information = earthquakes.information
    coordinates, plan = information.coordinates, information.plan

    def objective(u: np.ndarray) -> float:
        values = coordinates.values(torch.as_tensor(u))
        return e_step(plan, {n: v.detach() for n, v in values.items()}).objective

    step = 0.03 * information.conditional_errors.numpy()
    found = hessian(objective, np.zeros(coordinates.size), step)
    scale = float(information.matrix.abs().max())
    assert np.allclose(-found, information.matrix.numpy(), atol=FINITE_DIFFERENCE * scale)


def test_a_saddle_has_no_covariance() -> None:
    x = programs.mixture_data(100)
    same = {"weights": [0.5, 0.5], "loc": [float(x.mean())] * 2, "scale": [float(x.std(correction=0))] * 2}
    start = {n: torch.tensor(v) for n, v in same.items()}
    # A fit would leave it: it is evaluated as it stands.
    result = ppl_em.fit(programs.two_normals, x, init=start, method=ppl_em.EM(max_steps=0))
    assert result.information.is_saddle
    with pytest.raises(PplEmError, match="not at a maximum"):
        result.standard_errors()
    assert result.summary()["std_error"].isna().all()
    assert not result.diagnose().ok


def test_unknown_kinds_and_levels_are_refused(faithful, earthquakes) -> None:
    with pytest.raises(PplEmError, match="unknown kind of covariance"):
        faithful.standard_errors("robust")
    with pytest.raises(PplEmError, match="between 0 and 1"):
        faithful.conf_int(95)
    with pytest.raises(PplEmError, match="independent data"):
        earthquakes.standard_errors("sandwich")
