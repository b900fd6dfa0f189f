"""Digits without labels: an autoencoder whose codes come in clusters.

Plan: the cluster of each image is summed out exactly (engine "mixture") inside the evidence lower bound, given codes
that the encoder draws; the code ``z`` is amortised. Weights, means and scales of the clusters keep their closed
forms, from expected counts averaged over steps; the decoder and the encoder take gradient steps.

Data: as in ``vae``.

Reference:
    Jiang, Z. et al. (2017). Variational deep embedding: an unsupervised and generative approach to clustering. IJCAI.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyro
import torch
from pyro.distributions import Bernoulli, Categorical, Normal, constraints
from torch import Tensor, nn

DATA = Path(__file__).parent / "data" / "digits.npz"
NUM_CODES, WIDTH, NUM_PIXELS = 8, 256, 64


def load(path: str | Path | None = None) -> Tensor:
    """Reads images, 8 × 8 by default; pixels above half of the range are 1.

    Args:
        path: an ``.npz`` file with an array ``images`` (n, height, width).

    Returns:
        (n, pixels) zeros and ones, float32.
    """
    images = np.load(path or DATA)["images"]
    return torch.from_numpy((images > images.max() / 2).reshape(len(images), -1).astype(np.float32))


def new_decoder(seed: int = 0) -> nn.Sequential:
    """Returns a network from codes to logits of pixels; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(NUM_CODES, WIDTH), nn.ReLU(), nn.Linear(WIDTH, NUM_PIXELS))
        return network.float()


decoder = new_decoder()


def model(x: Tensor, num_clusters: int = 10) -> None:
    """Observes images.

    Args:
        x: (images, pixels) zeros and ones.
        num_clusters: K.
    """
    pyro.module("decoder", decoder)
    weights = pyro.param("weights", x.new_ones(num_clusters) / num_clusters, constraint=constraints.simplex)
    start = torch.randn(num_clusters, NUM_CODES, generator=torch.Generator().manual_seed(0))
    loc = pyro.param("loc", start.to(x))
    scale = pyro.param("scale", x.new_ones(num_clusters, NUM_CODES), constraint=constraints.positive)
    with pyro.plate("images", len(x)):
        cluster = pyro.sample("cluster", Categorical(weights))
        z = pyro.sample("z", Normal(loc[cluster], scale[cluster]).to_event(1))
        pyro.sample("x", Bernoulli(logits=decoder(z)).to_event(1), obs=x)
