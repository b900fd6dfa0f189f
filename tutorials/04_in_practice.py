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
# # When the textbook loop is not enough
#
# Data have holes, likelihoods have bad optima, nobody knows how many components there are, the table is too long to go
# through ten thousand times, and in the end somebody asks how sure the numbers are. This page takes one geyser through all
# of it: the eruptions of Old Faithful, their length and the wait before them (minutes; Azzalini and Bowman, 1990).

# %%
import os
import warnings
from functools import partial
from pathlib import Path

warnings.filterwarnings("ignore", message="IProgress")  # notebook widgets are not needed here

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

import ppl_em

torch.set_default_dtype(torch.float64)
SMOKE = os.environ.get("PPL_EM_SMOKE") == "1"
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"

data = pd.read_csv(Path(ppl_em.__path__[0]) / "data" / "faithful.csv").astype(float)


def mixture(x, num_components=2):
    n, d = x.shape
    weights = pyro.param("weights", torch.ones(num_components) / num_components, constraint=constraints.simplex)
    loc = pyro.param("loc", torch.zeros(num_components, d))
    cov = pyro.param("cov", torch.eye(d).repeat(num_components, 1, 1), constraint=constraints.positive_definite)
    with pyro.plate("eruptions", n):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.MultivariateNormal(loc[z], covariance_matrix=cov[z]), obs=x)


# %% [markdown]
# ## Holes in the data
#
# Somebody forgot to write down a fifth of the numbers. `NaN` means missing: what is missing is integrated out, exactly,
# and the program stays as it is.

# %%
whole = ppl_em.fit(mixture, data).relabel("loc")
rng = np.random.default_rng(0)
holes = data.mask(rng.random(data.shape) < 0.2)
holes = holes.dropna(how="all")
holed = ppl_em.fit(mixture, holes).relabel("loc")
print(f"{int(holes.isna().sum().sum())} of {holes.size} numbers are missing")
pd.DataFrame({"all numbers": whole.params["loc"].ravel(), "with holes": holed.params["loc"].ravel()}).round(2)

# %% [markdown]
# `impute` fills the holes with their expectation given the rest of the same eruption, and with as many draws as one asks
# for. An expectation lies between the groups where nothing tells them apart; draws do not.

# %%
filled = holed.impute()["x"]
wait_missing = torch.tensor(holes["waiting"].isna().to_numpy())
truth = torch.tensor(data.loc[holes.index].to_numpy())
error = (filled - truth)[wait_missing, 1]
naive = (truth[~wait_missing, 1].mean() - truth)[wait_missing, 1]
print(
    f"error of an imputed wait: {error.square().mean().sqrt():.1f} minutes; of the mean wait: {naive.square().mean().sqrt():.1f}"
)

figure, ax = plt.subplots(figsize=(6.5, 4), layout="constrained")
ax.scatter(*truth[~wait_missing].T, s=9, color="0.7", label="wait known")
ax.scatter(truth[wait_missing, 0], filled[wait_missing, 1], s=16, color=BLUE, label="wait imputed")
ax.set(xlabel="length, minutes", ylabel="wait, minutes", title="The length tells what the wait must have been")
ax.legend(frameon=False)
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## How many groups?
#
# `select` fits the program for every choice and ranks them. BIC and ICL are criteria on the training data; the last column
# is what each model says about eruptions that it has not seen.

# %%
sizes = range(1, 4 if SMOKE else 6)
selection = ppl_em.select(lambda K: partial(mixture, num_components=K), sizes, data, criterion="icl")
print(selection.choice, "groups")
selection.table.round(1)

# %% [markdown]
# ## A prior instead of a choice
#
# Or one gives the mixture more components than it can need, and a prior that lets it do without. Under variational Bayes
# every parameter has a distribution, and components without data fall back to their prior: they prune themselves. The
# program says what it believes, weights, means and precisions under conjugate priors; `EM(globals="variational")` does the
# rest in closed form.


# %%
def sparse_mixture(x, num_components=8):
    n, d = x.shape
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((num_components,), 0.01)))
    with pyro.plate("components", num_components):
        precision = pyro.sample("precision", dist.Wishart(torch.tensor(d + 2.0), precision_matrix=x.T.cov()))
        loc = pyro.sample("loc", dist.MultivariateNormal(x.mean(0), precision_matrix=0.1 * precision))
    with pyro.plate("eruptions", n):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.MultivariateNormal(loc[z], precision_matrix=precision[z]), obs=x)


print(ppl_em.explain(sparse_mixture, data, method=ppl_em.EM(globals="variational")))
bayes = ppl_em.fit(sparse_mixture, data, method=ppl_em.EM(globals="variational"))
share = bayes.posterior().marginal("weights").mean
print("expected weights:", [round(float(w), 3) for w in share.sort(descending=True).values])

# %% [markdown]
# ## A stream
#
# A hundred thousand eruptions, simulated from the fit. Full EM goes through all of them at every step. Stepwise EM (Cappé
# and Moulines, 2009) averages the statistics of small batches, with an M-step after each: after one pass it is where full
# EM is after many.

# %%
size = 20_000 if SMOKE else 100_000
generator = torch.Generator().manual_seed(0)
component = torch.multinomial(whole.params["weights"], size, replacement=True, generator=generator)
noise = torch.randn(size, 2, generator=generator)
scale = torch.linalg.cholesky(whole.params["cov"])
stream = whole.params["loc"][component] + (scale[component] @ noise.unsqueeze(-1)).squeeze(-1)

start = {"loc": torch.tensor([[2.5, 60.0], [4.0, 75.0]]), "cov": torch.diag(torch.tensor([1.0, 100.0])).expand(2, 2, 2)}
online = ppl_em.fit(mixture, stream, init=start, method=ppl_em.EM(variant="stepwise", batch_size=1000, passes=1))
full = ppl_em.fit(mixture, stream, init=start)
behind = (full.log_likelihood - online.log_likelihood) / size
print(f"one pass of stepwise EM: {behind:.1e} nats per eruption below full EM ({full.num_steps} passes)")

# %% [markdown]
# ## What can be trusted
#
# `diagnose` asks what somebody who has to rely on these numbers would ask, and says what to do where the answer is no.

# %%
checks = whole.diagnose()
print(checks)

# %% [markdown]
# Intervals rest on the curvature of the exact log-likelihood at its maximum. A bootstrap, hundreds of refits to data drawn
# from the fit, is a slow way to the same numbers that assumes less: where the two agree, the curvature was enough.

# %%
refits = whole.bootstrap(40 if SMOKE else 400)
quick = torch.cat([whole.standard_errors()[n].ravel() for n in ("weights", "loc", "cov")])
slow = torch.cat([refits.standard_errors()[n].ravel() for n in ("weights", "loc", "cov")])
figure, ax = plt.subplots(figsize=(4.2, 4.2), layout="constrained")
ax.loglog(quick, slow, "o", color=BLUE)
ends = [float(quick.min()), float(quick.max())]
ax.plot(ends, ends, color="0.6", lw=1, zorder=0)
ax.set(xlabel="standard error by curvature", ylabel="by refits", title="Two ways to an error agree")
ax.spines[["top", "right"]].set_visible(False)
plt.show()
whole.conf_int().round(3).head(6)

# %%
# What this page claims:
assert float(error.square().mean().sqrt()) < 0.6 * float(naive.square().mean().sqrt())
assert bool((holed.params["loc"] - whole.params["loc"]).abs().max() < 3)
assert selection.choice == 2
assert int((share > 0.02).sum()) == 2 and bayes.objective_name == "elbo"
assert abs(behind) < 0.01
assert checks.ok
assert float((slow / quick).log().abs().max()) < (0.6 if SMOKE else 0.3)
