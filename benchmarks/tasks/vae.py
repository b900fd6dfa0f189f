"""Gradient steps of a variational autoencoder, against a loop by hand in PyTorch and Pyro's SVI."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from benchmarks.task import Contender, Finish, Run, Task
from models import vae

BATCH, RATE, HIDDEN = 128, 1e-3, (256, 256)


class Encoder(nn.Module):
    """The encoder that one writes by hand: location and log-scale of each image's code."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (vae.NUM_PIXELS, *HIDDEN)
        layers = [m for a, b in zip(sizes, HIDDEN, strict=False) for m in (nn.Linear(a, b), nn.ReLU())]
        self.net = nn.Sequential(*layers, nn.Linear(HIDDEN[-1], 2 * vae.NUM_CODES)).float()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale of the codes of images."""
        loc, log_scale = self.net(x).chunk(2, -1)
        return loc, log_scale.exp()


def batches(x: Tensor, num_steps: int) -> list[Tensor]:
    """Random batches of equal size, epoch after epoch."""
    found: list[Tensor] = []
    while len(found) < num_steps:
        found += [x[i] for i in torch.randperm(len(x)).split(BATCH) if len(i) == BATCH]
    return found[:num_steps]


def bound(x: Tensor, encoder: Encoder, decoder: nn.Module) -> Tensor:
    """Evidence lower bound of a batch at one draw, the divergence in closed form."""
    loc, scale = encoder(x)
    logits = decoder(loc + scale * torch.randn_like(loc))
    fit = -nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    return fit + 0.5 * (1 + 2 * scale.log() - loc.square() - scale.square()).sum()


def by_hand() -> Run:
    """The loop that one writes in PyTorch."""
    x = vae.load()

    def run(num_steps: int) -> Finish:
        torch.manual_seed(0)
        decoder, encoder = vae.new_decoder(), Encoder()
        optimiser = torch.optim.Adam([*decoder.parameters(), *encoder.parameters()], lr=RATE)
        for batch in batches(x, num_steps):
            loss = -bound(batch, encoder, decoder) * (len(x) / BATCH)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            loss.item()
        return lambda: float(bound(x, encoder, decoder).detach())

    return run


def ours() -> Run:
    """The program of `models.vae`, without a guide."""
    import ppl_em

    x = vae.load()

    def run(num_steps: int) -> Finish:
        vae.decoder.load_state_dict(vae.new_decoder().state_dict())
        method = ppl_em.SVI(
            max_steps=num_steps, lr=RATE, schedule="constant", batch_size=BATCH, hidden=HIDDEN, evaluation_particles=1
        )
        result = ppl_em.fit(vae.model, x, method=method)
        return lambda: result.objective

    return run


def pyros() -> Run:
    """The same program and a guide by hand under Pyro's SVI, its divergence in closed form."""
    from pyro.infer import SVI, TraceMeanField_ELBO

    x = vae.load()

    def run(num_steps: int) -> Finish:
        torch.manual_seed(0)
        pyro.clear_param_store()
        vae.decoder.load_state_dict(vae.new_decoder().state_dict())
        encoder = Encoder()

        def guide(x: Tensor) -> None:
            pyro.module("encoder", encoder)
            with pyro.plate("images", len(x)):
                pyro.sample("z", dist.Normal(*encoder(x)).to_event(1))

        pyro.enable_validation(False)
        svi = SVI(vae.model, guide, pyro.optim.Adam({"lr": RATE}), TraceMeanField_ELBO())
        for batch in batches(x, num_steps):
            svi.step(batch)
        return lambda: float(bound(x, encoder, vae.decoder).detach())

    return run


TASK = Task(
    what=f"variational autoencoder, {vae.NUM_PIXELS}-256-256-{vae.NUM_CODES} both ways, batches of {BATCH}",
    contenders={
        "ppl_em": Contender(ours, same_algorithm=False),
        "PyTorch by hand": Contender(by_hand, same_algorithm=False),
        "Pyro SVI": Contender(pyros, same_algorithm=False),
    },
    num_steps=(50, 450),
    max_repeats=2,
    threads=(1,),
)
