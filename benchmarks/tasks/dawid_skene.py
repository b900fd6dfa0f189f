"""Dawid and Skene's model of workers who label items, against crowd-kit and against the same steps by hand."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.ops.indexing import Vindex

from benchmarks.contenders import plain_em
from benchmarks.task import Contender, Finish, Run, Target, Task

ITEMS, WORKERS, CLASSES, LABELS = 50_000, 200, 10, 5


def data() -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Draws labels (items, labels), who gave each of them, and the start of EM by majority vote."""
    rng = np.random.default_rng(0)
    skill = rng.uniform(0.4, 0.9, WORKERS)
    truth = rng.integers(CLASSES, size=ITEMS)
    who = np.argsort(rng.random((ITEMS, WORKERS)), 1)[:, :LABELS]
    right = rng.random(who.shape) < skill[who]
    labels = np.where(right, truth[:, None], rng.integers(CLASSES, size=who.shape))
    votes = np.eye(CLASSES)[labels].sum(1)
    votes /= votes.sum(1, keepdims=True)
    counts = np.zeros((WORKERS, CLASSES, CLASSES))
    np.add.at(counts, (who, slice(None), labels), votes[:, None, :].repeat(LABELS, 1))
    return labels, who, {"shares": votes.mean(0), "errors": normalised(counts)}


def normalised(counts: np.ndarray) -> np.ndarray:
    """Error rates (workers, true class, label) as crowd-kit makes them: no count is quite zero."""
    counts = np.clip(counts, 1e-10, None)
    return counts / counts.sum(-1, keepdims=True)


def model(labels: torch.Tensor, who: torch.Tensor) -> None:
    """The program; labels and who of shape (items, labels)."""
    shares = pyro.param("shares", torch.ones(CLASSES) / CLASSES, constraint=constraints.simplex)
    errors = pyro.param("errors", torch.ones(WORKERS, CLASSES, CLASSES) / CLASSES, constraint=constraints.simplex)
    with pyro.plate("items", len(labels), dim=-2):
        truth = pyro.sample("truth", dist.Categorical(shares))
        with pyro.plate("judgements", labels.shape[1], dim=-1):
            pyro.sample("label", dist.Categorical(Vindex(errors)[who, truth, :]), obs=labels)


def ours() -> Run:
    """The program above, fitted by plain EM."""
    labels, who, start = data()
    return plain_em(model, (labels, who), start)


def log_likelihood(labels: np.ndarray, who: np.ndarray, shares: np.ndarray, errors: np.ndarray) -> float:
    """Log-likelihood of all labels at given parameters, nats."""
    joint = np.log(shares) + np.log(errors.transpose(0, 2, 1)[who, labels]).sum(1)
    return float(np.logaddexp.reduce(joint, axis=1).sum())


def crowd_kit() -> Run:
    """crowd-kit's DawidSkene, which starts from majority votes itself and computes its loss in every step."""
    import pandas as pd
    from crowdkit.aggregation import DawidSkene

    labels, who, _ = data()
    task = np.arange(ITEMS).repeat(LABELS)
    table = pd.DataFrame({"task": task, "worker": who.reshape(-1), "label": labels.reshape(-1)})

    def run(num_steps: int) -> Finish:
        fitted = DawidSkene(n_iter=num_steps, tol=-np.inf).fit(table)

        def reached() -> float:
            errors = np.full((WORKERS, CLASSES, CLASSES), 1e-10)
            rows = fitted.errors_.reset_index()
            errors[rows["worker"], :, rows["label"]] = rows[list(range(CLASSES))].to_numpy()
            return log_likelihood(labels, who, fitted.priors_.loc[list(range(CLASSES))].to_numpy(), errors)

        return reached

    return run


TASK = Task(
    what=f"Dawid and Skene, {ITEMS:,} items, {WORKERS} workers, {CLASSES} classes, {LABELS} labels each",
    contenders={"ppl_em": Contender(ours), "crowd-kit": Contender(crowd_kit, needs="crowd-kit")},
    num_steps=(2, 12),
    tolerance=1e-2,  # crowd-kit keeps every error rate above 1e-10
    max_repeats=3,
    target=Target("crowd-kit", 0.25),
)
