# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A first fit
#
# A model is an ordinary Pyro program. This page takes one, looks at the plan that `ppl_em` makes of it, fits it, reads
# the answer, and ends with the report that one hands on.
#
# The data: 272 eruptions of the geyser Old Faithful, how long each lasted and how long people had waited for it
# (minutes; Azzalini and Bowman, 1990).

# %%
import os
import tempfile
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", message="IProgress")  # notebook widgets are not needed here

import matplotlib.pyplot as plt
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

import ppl_em

torch.set_default_dtype(torch.float64)
SMOKE = os.environ.get("PPL_EM_SMOKE") == "1"

data = pd.read_csv(Path(ppl_em.__path__[0]) / "data" / "faithful.csv")
data.head()


# %% [markdown]
# ## The program
#
# Each eruption belongs to one of two groups, `z`; given the group, its two numbers are normal. Nothing in the program
# is written for an algorithm: no enumeration marks, no guide.


# %%
def mixture(x, num_components=2):
    n, d = x.shape
    weights = pyro.param("weights", torch.ones(num_components) / num_components, constraint=constraints.simplex)
    loc = pyro.param("loc", x[:num_components].clone())
    cov = pyro.param("cov", torch.eye(d).repeat(num_components, 1, 1), constraint=constraints.positive_definite)
    with pyro.plate("eruptions", n):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.MultivariateNormal(loc[z], covariance_matrix=cov[z]), obs=x)


# %% [markdown]
# ## The plan
#
# `explain` runs the program a few times, does no inference, and says what a fit would do: how each latent variable is
# dealt with and at what cost, which rule updates each parameter, and on what evidence the word "exact" rests.

# %%
plan = ppl_em.explain(mixture, data)
print(plan)

# %% [markdown]
# `z` is summed exactly, and all three parameters have closed-form updates, so this is EM with nothing approximate in
# it. The same facts are there for a program to read:

# %%
plan.exact, plan.engine_of("z"), plan.rule_of("cov")

# %% [markdown]
# ## The fit
#
# A mixture's likelihood has several optima, so `fit` starts from several places and keeps the best; all outcomes are
# in `restarts`. It stops when the estimated gain that is still to be had is below a millionth of a nat.

# %%
result = ppl_em.fit(mixture, data, seed=0, restarts=3 if SMOKE else None)
print(result)
pd.DataFrame(
    [(r.kind, r.objective, r.status.name, r.num_steps) for r in result.restarts],
    columns=["start", "log-likelihood", "status", "steps"],
)

# %%
result = result.relabel("loc")  # the labels of components are arbitrary: order them by the length of the eruption
result.summary()

# %% [markdown]
# Short eruptions (two minutes) follow waits of under an hour, long ones (over four) waits of eighty minutes.
#
# ## What it says about each eruption
#
# The posterior over `z` is exact too: a torch distribution with one row for each eruption.

# %%
posterior = result.posterior()
share = posterior.marginal("z").probs
share[:4]

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
result.plot("data", axes[0])
result.plot("history", axes[1])
plt.show()

# %% [markdown]
# New data need no new fit: `posterior` and `log_prob` take whatever `fit` takes. An eruption of three minutes after
# seventy is between the groups, and has a low density.

# %%
new = pd.DataFrame({"eruptions": [2.0, 3.0, 4.5], "waiting": [52.0, 70.0, 81.0]})
new.assign(long=result.posterior(new).marginal("z").probs[:, 1].numpy(), log_density=result.log_prob(new).numpy())

# %% [markdown]
# ## How many groups?
#
# The same program with one to four components, compared by the Bayesian information criterion (smaller is better).

# %%
choices = range(1, 3) if SMOKE else range(1, 5)
fits = {
    f"{k} components": ppl_em.fit(mixture, data, model_kwargs={"num_components": k}, restarts=3 if SMOKE else None)
    for k in choices
}
table = ppl_em.compare(fits)
table

# %% [markdown]
# ## The report
#
# Checks first: each is a question, what was found, what was wanted, and what to do about it. Then one HTML file to
# hand on, with the same values in a JSON file beside it.

# %%
diagnosis = result.diagnose()
print(diagnosis)

# %%
directory = Path(tempfile.mkdtemp())
path = result.report(directory / "old_faithful.html")
sorted(p.name for p in directory.iterdir())

# %% [markdown]
# ---
# What this page claims, checked:

# %%
assert plan.exact and plan.engine_of("z") == "mixture" and plan.rule_of("cov") == "closed form"
assert abs(result.objective - (-1130.263960)) < 1e-3  # the maximum that R's mclust finds
assert result.converged
assert abs(float(result.log_prob().sum()) - result.objective) < 1e-6
assert torch.allclose(share.sum(-1), torch.ones(len(data)))
assert table["bic"].idxmin() == "2 components"
assert path.exists()
