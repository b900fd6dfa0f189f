"""A variational autoencoder of handwritten digits: each image comes from a few numbers through a network.

Plan: the code ``z`` of each image is continuous and feeds a network, so that no exact engine integrates it; an
encoder, built from the program, approximates its posterior and is trained together with the decoder by gradient
steps on the evidence lower bound. No guide is written here.
Peer: the same program with a guide by hand under Pyro's SVI, and a loop in plain PyTorch: the same bound.

Data: the 8 × 8 digits that scikit-learn bundles, black or white at half the range of grey.

Reference:
    Kingma, D. P. and Welling, M. (2014). Auto-encoding variational Bayes. ICLR.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyro
import torch
from pyro.distributions import Bernoulli, Normal
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
        network = nn.Sequential(
            nn.Linear(NUM_CODES, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, NUM_PIXELS)
        )
        return network.float()


decoder = new_decoder()


def model(x: Tensor) -> None:
    """Observes images.

    Args:
        x: (images, pixels) zeros and ones.
    """
    pyro.module("decoder", decoder)
    with pyro.plate("images", len(x)):
        z = pyro.sample("z", Normal(x.new_zeros(NUM_CODES), 1.0).to_event(1))
        pyro.sample("x", Bernoulli(logits=decoder(z)).to_event(1), obs=x)
