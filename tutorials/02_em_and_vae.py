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
# # EM and the variational autoencoder climb one objective
#
# For latents $z$, data $x$, parameters $\theta$ and **any** distribution $q$ over the latents,
#
# $$\log p(x;\theta) \;=\; \underbrace{\mathbb E_q[\log p(x,z;\theta)] + H(q)}_{\text{ELBO}(q,\theta)} \;+\;
# \mathrm{KL}\big(q(z)\,\|\,p(z\mid x;\theta)\big).$$
#
# EM climbs the bound by coordinate ascent: the E-step sets $q$ to the posterior, so that the KL term vanishes; the
# M-step moves $\theta$ with $q$ held fixed. A variational autoencoder climbs the same bound by gradient steps, with $q$
# restricted to what an encoder can say. This page draws both.
#
# Neal and Hinton (1998) is the reference for the first half, Kingma and Welling (2014) for the second.

# %%
import os
import warnings

warnings.filterwarnings("ignore", message="IProgress")  # notebook widgets are not needed here

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import nn

import ppl_em

torch.set_default_dtype(torch.float64)
SMOKE = os.environ.get("PPL_EM_SMOKE") == "1"
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"

# %% [markdown]
# ## The two readings of the bound, step by step
#
# A mixture of two normals that overlap, so that EM takes its time.

# %%
torch.manual_seed(1)
x = torch.cat([torch.randn(150), torch.randn(100) + 3.0])


def mixture(x):
    weight = pyro.param("weight", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([1.0, 2.0]))
    scale = pyro.param("scale", torch.tensor([1.0, 1.0]), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weight))
        pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)


# %% [markdown]
# `iterate` yields the state after every step, and `terms` takes the bound apart at any parameters and any $q$ that is a
# posterior at other parameters. Each EM step from $\theta$ to $\theta'$ is then two moves on one curve:
# after the E-step, $q = p(z\mid x;\theta)$ touches the log-likelihood; after the M-step the bound has risen, and the
# log-likelihood by more, because the old $q$ is no longer the posterior.

# %%
plain = ppl_em.EM(max_steps=12 if SMOKE else 40, tol=0, accelerate=False)
states = list(ppl_em.iterate(mixture, x, init="params", method=plain))

bound, gap, likelihood = [], [], []
for before, after in zip(states, states[1:]):
    terms = after.terms(q=before.params)  # theta has moved, q has not
    bound.append(terms["elbo"])
    gap.append(terms["kl"])
    likelihood.append(terms["log_likelihood"])

figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
steps = range(1, len(states))
axes[0].plot(steps, [s.objective for s in states[1:]], color=BLUE, label="log-likelihood")
axes[0].plot(steps, bound, color=ORANGE, ls="--", label="bound after the M-step, old q")
axes[0].set(xlabel="step", ylabel="nats", title="The bound pushes the likelihood up")
axes[0].legend(frameon=False)
axes[1].semilogy(steps, gap, color=GREEN)
axes[1].set(xlabel="step", ylabel="KL(q || posterior), nats", title="The gap that each E-step closes")
for ax in axes:
    ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## Coordinate ascent and gradient ascent, raced
#
# The same program, the same start, the same exact sum over `z`; once the parameters jump to the M-step's maximiser, once
# they follow the gradient of the bound (Adam). Left to itself, variational inference too would keep the closed forms of
# these parameters (that is what `closed_form=False` turns off), and its steps would be those of plain EM.

# %%
racers = {
    "EM, plain": ppl_em.fit(mixture, x, init="params", method=ppl_em.EM(tol=1e-8, accelerate=False)),
    "EM, accelerated": ppl_em.fit(mixture, x, init="params", method=ppl_em.EM(tol=1e-8)),
    "gradient steps": ppl_em.fit(
        mixture, x, init="params", method=ppl_em.SVI(max_steps=400 if SMOKE else 1500, lr=0.05, closed_form=False)
    ),
}
figure, ax = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
best = max(r.objective for r in racers.values())
for (name, run), colour in zip(racers.items(), (BLUE, GREEN, ORANGE)):
    ax.plot((best - run.history).clamp_min(1e-9).numpy(), color=colour, label=f"{name}: {run.num_steps} steps")
ax.set(
    xscale="symlog",
    yscale="log",
    xlabel="step",
    ylabel="nats below the best",
    title="One optimum, three ways to climb to it",
)
ax.legend(frameon=False)
ax.spines[["top", "right"]].set_visible(False)
plt.show()
{name: round(run.objective, 4) for name, run in racers.items()}

# %% [markdown]
# ## Where the posterior is not tractable
#
# Now the latent is continuous and goes through a network. No engine can integrate it, and the plan says so: an encoder
# stands in for the posterior.

# %%
torch.manual_seed(2)
angle = torch.rand(200 if SMOKE else 600) * 4.5
spiral = torch.stack([angle.cos(), angle.sin()], -1) * (0.5 + 0.3 * angle)[:, None] + 0.07 * torch.randn(len(angle), 2)
decoder = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 2))


def curve(x):
    pyro.module("decoder", decoder)
    noise = pyro.param("noise", torch.tensor(0.3), constraint=constraints.positive)
    with pyro.plate("points", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(decoder(z), noise).to_event(1), obs=x)


print(ppl_em.explain(curve, spiral))

# %%
vae = ppl_em.fit(curve, spiral, method=ppl_em.SVI(max_steps=200 if SMOKE else 4000, lr=5e-3), seed=0)
estimate, error = vae.estimate_log_likelihood(200 if SMOKE else 2000)
print(f"bound {vae.objective:.1f}, log-likelihood about {estimate:.1f} ± {error:.1f} nats")

# %% [markdown]
# The bound stays below the log-likelihood: the gap that EM closes at every step remains here, because the posterior is
# not the normal distribution that the encoder can express. That gap is the price of an amortised $q$, and it is
# reported in nats.

# %%
drawn = vae.predict(num_samples=1, latents="prior", seed=0)["x"][0]
figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
axes[0].plot(vae.history.numpy(), color=BLUE, lw=0.8)
axes[0].axhline(estimate, color=ORANGE, ls="--", label="log-likelihood (importance weighted)")
axes[0].set(
    xlabel="gradient step",
    ylabel="bound, nats",
    title=f"A gap of {estimate - vae.objective:.0f} nats stays",
    ylim=(vae.objective - 3 * len(spiral), estimate + len(spiral)),
)
axes[0].legend(frameon=False)
axes[1].scatter(*spiral.T, s=6, color=BLUE, label="data")
axes[1].scatter(*drawn.T, s=6, color=ORANGE, label="drawn from the model")
axes[1].set(title="What the decoder has learnt", aspect="equal")
axes[1].legend(frameon=False, markerscale=3)
for ax in axes:
    ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ---
# What this page claims, checked:

# %%
for i, (before, after) in enumerate(zip(states, states[1:])):
    assert abs(bound[i] + gap[i] - likelihood[i]) < 1e-8  # the two readings agree
    assert gap[i] > -1e-9 and bound[i] >= before.objective - 1e-9  # the M-step raised the bound
    assert abs(after.terms()["kl"]) < 1e-8  # the E-step closes the gap
assert abs(racers["EM, plain"].objective - racers["EM, accelerated"].objective) < 1e-4
assert racers["gradient steps"].plan.rule_of("loc") == "gradient"
assert abs(racers["gradient steps"].objective - best) < (1.0 if SMOKE else 0.05)
assert not vae.exact and vae.plan.engine_of("z") == "amortised"
assert vae.objective < estimate + 3 * error
