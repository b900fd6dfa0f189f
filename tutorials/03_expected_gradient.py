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
# # One exact E-step, four M-steps
#
# EM alternates two things that have little to do with each other. The **E-step** computes the posterior over what is
# hidden, here parse trees and alignments: too many to list, summed exactly by dynamic programming. The **M-step** moves
# the parameters, and how far it moves is a choice:
#
# 1. plain probability tables have a **closed form**: normalised expected counts;
# 2. tables that come out of a network have none, and a **large M-step** climbs for many iterations with the counts held
#    fixed;
# 3. or it takes **one gradient step** and asks for new counts;
# 4. which, for alignments of labels to frames, is how **CTC** networks are trained.
#
# The E-step is the same in all four, because the counts are a gradient:
#
# $$\frac{\partial \log Z}{\partial \log \theta_i} \;=\; \mathbb E_{\text{hidden}\,\mid\,\text{data}}[\,\text{uses of }\theta_i\,].$$
#
# Eisner (2016) is the reference for this identity, Salakhutdinov, Roweis and Ghahramani (2003) for the expected gradient,
# Graves et al. (2006) for CTC.

# %%
import os
import warnings

warnings.filterwarnings("ignore", message="IProgress")  # notebook widgets are not needed here

import matplotlib.pyplot as plt
import pyro
import torch
from pyro.distributions import constraints
from torch import nn
from torch.nn.functional import ctc_loss

import ppl_em
from ppl_em.distributions import CTC, PCFG, from_text

torch.set_default_dtype(torch.float64)
SMOKE = os.environ.get("PPL_EM_SMOKE") == "1"
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"

# %% [markdown]
# ## The E-step is a gradient
#
# Sentences from a published toy grammar: palindromes over two letters (Lari and Young, 1990).

# %%
palindromes = from_text("""
    S -> A C [0.3] | B D [0.3] | A A [0.2] | B B [0.2]
    C -> S A
    D -> S B
    A -> 'a'
    B -> 'b'
""").distribution()
torch.manual_seed(1)
drawn = palindromes.sample((300,))
drawn = drawn[(drawn >= 0).sum(-1) <= 6, :6]
sentences, times = drawn.unique(dim=0, return_counts=True)  # equal sentences once, with a weight
times = times.double()
["".join("ab"[word] for word in row if word >= 0) for row in sentences.tolist()]

# %% [markdown]
# A grammar with three nonterminals and two word classes, its tables made by a small network from embeddings of the
# symbols. `log_prob` sums over all parse trees, so it is $\log Z$; `expected_counts` are the uses of each rule on average
# over the posterior on trees. They are the same thing up to one line of automatic differentiation.


# %%
class Tables(nn.Module):
    """Root (NT,), rules (NT, S, S) and emissions (PT, words) from embeddings of the symbols."""

    def __init__(self, nonterminals=3, preterminals=2, words=2, width=8):
        super().__init__()
        self.nonterminals = nn.Parameter(torch.randn(nonterminals, width))
        self.preterminals = nn.Parameter(torch.randn(preterminals, width))
        symbols = nonterminals + preterminals
        self.root, self.pairs = nn.Linear(width, 1), nn.Linear(width, symbols**2)
        self.words, self.shape = nn.Linear(width, words), (nonterminals, symbols, symbols)

    def forward(self):
        root = self.root(self.nonterminals).squeeze(-1).softmax(-1)
        rules = self.pairs(self.nonterminals).softmax(-1).reshape(self.shape)
        return root, rules, self.words(self.preterminals).softmax(-1)


torch.manual_seed(4)
network = Tables()
first_weights = {name: weight.detach().clone() for name, weight in network.state_dict().items()}
with torch.no_grad():
    root, rules, emissions = network()

counts = PCFG(root, rules, emissions).expected_counts(sentences, times)["rules"]
log_rules = rules.log().requires_grad_()
log_z = (times * PCFG(root, log_rules.exp(), emissions, validate_args=False).log_prob(sentences)).sum()
(slope,) = torch.autograd.grad(log_z, log_rules)
print(f"largest difference of counts and gradient: {(counts - slope).abs().max():.1e}")

# %% [markdown]
# ## Two programs, three M-steps
#
# The first program has the tables themselves as parameters, the second the network. Both start from the same tables.


# %%
def with_tables(sentences):
    r = pyro.param("root", root, constraint=constraints.simplex)
    p = pyro.param("rules", rules.flatten(1), constraint=constraints.simplex)
    e = pyro.param("emissions", emissions, constraint=constraints.simplex)
    with pyro.plate("sentences", len(sentences)):
        pyro.sample("words", PCFG(r, p.reshape(3, 5, 5), e), obs=sentences)


def with_network(sentences):
    tables = pyro.module("network", network)()
    with pyro.plate("sentences", len(sentences)):
        pyro.sample("words", PCFG(*tables), obs=sentences)


print(ppl_em.explain(with_tables, sentences, weights=times))
print()
print(ppl_em.explain(with_network, sentences, weights=times))

# %% [markdown]
# The plans differ in their last lines only. Now the race, one curve for each M-step; the horizontal axis counts E-steps.
# The network is rich enough to express any tables, so a large M-step does almost what the closed form does. A single
# gradient step goes less far with the same counts.

# %%
NUM_STEPS = 10 if SMOKE else 60


def plain(**settings):
    return ppl_em.EM(max_steps=NUM_STEPS, tol=0, accelerate=False, **settings)


def adam(weights):
    return torch.optim.Adam(weights, lr=0.05)


def from_the_start(method):
    network.load_state_dict(first_weights)
    return ppl_em.fit(with_network, sentences, weights=times, init="params", method=method)


runs = {
    "closed form": ppl_em.fit(with_tables, sentences, weights=times, init="params", method=plain()),
    "large M-step (30 iterations)": from_the_start(plain(m_step_steps=30)),
    "one gradient step (Adam)": from_the_start(plain(m_step_steps=1, m_step_optim=adam)),
}
figure, ax = plt.subplots(figsize=(6.8, 3.6), layout="constrained")
for (name, run), colour, style in zip(runs.items(), (BLUE, ORANGE, GREEN), ("-", "--", "-")):
    ax.plot(run.history.numpy(), color=colour, ls=style, label=name)
ax.set(xlabel="E-steps", ylabel="log-likelihood, nats", title="The same counts, used to the full or a little at a time")
ax.legend(frameon=False)
ax.spines[["top", "right"]].set_visible(False)
plt.show()
{name: round(run.objective, 2) for name, run in runs.items()}

# %% [markdown]
# The first two curves lie on each other. The third climbs more slowly at first, and here it ends higher: a grammar's
# likelihood has many local maxima, and which one is reached depends on the path. That is what restarts are for.
#
# ## One gradient step is a gradient step on the likelihood
#
# With the counts held fixed, $Q(\theta) = \sum_i c_i \log \theta_i$ is a simple function, and its gradient **at the
# parameters where the counts were taken** is that of $\log Z$ (Fisher's identity). So one step of gradient descent in the
# M-step is plain gradient ascent of the log-likelihood, written as EM. To see it, take one step of known length and divide.

# %%
RATE = 1e-3
network.load_state_dict(first_weights)
log_z = (times * PCFG(*network(), validate_args=False).log_prob(sentences)).sum()
direct = torch.autograd.grad(log_z, list(network.parameters()))
stepped = ppl_em.fit(
    with_network,
    sentences,
    weights=times,
    init="params",
    method=ppl_em.EM(
        max_steps=1,
        tol=0,
        accelerate=False,
        m_step_steps=1,
        m_step_optim=lambda weights: torch.optim.SGD(weights, lr=RATE),
    ),
)
moved = [(stepped.params[f"network$$${name}"] - first_weights[name]) / RATE for name, _ in network.named_parameters()]
grammar_gap = max(float((a - b).abs().max()) for a, b in zip(moved, direct))
print(f"largest difference from the gradient of log Z: {grammar_gap:.1e}")

# %% [markdown]
# ## CTC is the fourth
#
# A network reads a signal frame by frame; what was said is known, when it was said is not. The labels are one observed
# site whose density sums over all alignments. The data here are made up: each of three labels has a shape that lasts
# three to six frames, with silence between, in noise.

# %%
FEATURES, BLANK = 6, 0
torch.manual_seed(7)
shapes = torch.randn(4, FEATURES)


def signals(count, generator):
    """Signals (count, FEATURES, T), frames used, labels padded with −1, and what each frame shows (0 is silence)."""
    x, shown, labels, used = torch.zeros(count, FEATURES, 36), torch.zeros(count, 36), torch.full((count, 4), -1), []
    for i in range(count):
        t = 0
        for k in range(int(torch.randint(2, 5, (), generator=generator))):
            label, gap, lasts = (
                int(torch.randint(lo, hi, (), generator=generator)) for lo, hi in ((1, 4), (1, 4), (3, 7))
            )
            labels[i, k], t = label, t + gap
            shown[i, t : t + lasts], t = label, t + lasts
        used.append(min(t + 1, 36))
        x[i] = shapes[shown[i].long()].T * (shown[i] > 0) + 0.6 * torch.randn(FEATURES, 36, generator=generator)
    return x, torch.tensor(used), labels, shown


generator = torch.Generator().manual_seed(0)
signal, used, labels, shown = signals(30 if SMOKE else 120, generator)
torch.manual_seed(0)
listener = nn.Sequential(nn.Conv1d(FEATURES, 24, 5, padding=2), nn.ReLU(), nn.Conv1d(24, 4, 1))
first_listener = {name: weight.detach().clone() for name, weight in listener.state_dict().items()}


def speech(signal, used, labels=None):
    scores = pyro.module("listener", listener)(signal).mT
    with pyro.plate("signals", len(signal)):
        pyro.sample("labels", CTC(scores, used, blank=BLANK), obs=labels)


print(ppl_em.explain(speech, signal, used, labels))

# %% [markdown]
# The gradient that CTC training follows, by PyTorch's own loss, and the step that EM takes:

# %%
frames = listener(signal).log_softmax(1).permute(2, 0, 1)
loss = ctc_loss(frames, labels.clamp(min=0), used, (labels > 0).sum(-1), BLANK, reduction="sum")
direct = torch.autograd.grad(-loss, list(listener.parameters()))
stepped = ppl_em.fit(
    speech,
    signal,
    used,
    labels,
    method=ppl_em.EM(
        max_steps=1,
        tol=0,
        accelerate=False,
        m_step_steps=1,
        m_step_optim=lambda weights: torch.optim.SGD(weights, lr=RATE / 100),
    ),
)
moved = [
    (stepped.params[f"listener$$${name}"] - first_listener[name]) / (RATE / 100)
    for name, _ in listener.named_parameters()
]
speech_gap = max(float((a - b).abs().max()) for a, b in zip(moved, direct))
print(f"log-likelihood {float(stepped.history[0]):.6f}, torch's loss {float(loss.detach()):.6f}")
print(f"largest difference from the gradient of torch's loss: {speech_gap:.1e}")

# %% [markdown]
# Training is the same program with more steps. `SVI` takes the steps on batches; the alignments are still summed exactly in
# each, and the plan says that nothing is approximated.

# %%
listener.load_state_dict(first_listener)
method = ppl_em.SVI(max_steps=200 if SMOKE else 400, batch_size=30, lr=0.01)
trained = ppl_em.fit(speech, signal, used, labels, method=method)
test_signal, test_used, test_labels, _ = signals(100, torch.Generator().manual_seed(1))
with torch.no_grad():
    decoded = CTC(listener(test_signal).mT, test_used, blank=BLANK).beam_search(10)
right = [
    best[0].labels == tuple(label for label in row if label > 0) for best, row in zip(decoded, test_labels.tolist())
]
print(f"exact: {trained.exact}; {sum(right)} of {len(right)} new signals read without an error")

# %% [markdown]
# The alignments that nobody gave are part of the posterior. Above, in black, the truth; below, the posterior probability
# of each label and blank at each frame.

# %%
ROW = 1
figure, axes = plt.subplots(2, 1, figsize=(7.5, 4.8), layout="constrained", sharex=True, height_ratios=(1, 2))
length = int(used[ROW])
axes[0].step(range(length), shown[ROW, :length], where="mid", color="black")
axes[0].set(ylabel="label shown", yticks=range(4), title="What was said when; the fit has not seen this")
axes[0].spines[["top", "right"]].set_visible(False)
trained.plot("alignments", axes[1], row=ROW)
plt.show()

# %%
best = trained.posterior().structure("labels").mode()
spelled = best.classes > 0
inside = (shown.long() == best.classes)[spelled].double().mean()
print(f"{float(inside):.0%} of the frames that spell a label lie inside its shape")

# %% [markdown]
# ---
# What this page claims, checked:

# %%
assert torch.allclose(counts, slope, rtol=0, atol=1e-9)  # the counts are the gradient of log Z
for run in runs.values():
    assert run.exact and (run.history.diff() > -1e-8).all()  # whatever the M-step, EM ascends
closed, large, single = (run.history for run in runs.values())
assert torch.isclose(closed[0], large[0]) and torch.isclose(closed[0], single[0])  # one start
assert abs(large[1] - closed[1]) < 0.05 * (closed[1] - closed[0])  # a large M-step nearly is the closed form
assert single[1] < large[1]  # one gradient step uses the same counts less
assert grammar_gap < 1e-10 and speech_gap < 1e-10  # one expected-gradient step is the gradient of log Z
assert abs(float(stepped.history[0]) + float(loss.detach())) < 1e-8
assert trained.exact and trained.plan.engine_of("labels") == "structured"
assert sum(right) >= (0.6 if SMOKE else 0.9) * len(right)
assert inside > 0.8
