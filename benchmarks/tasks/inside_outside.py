"""Inside–outside on long sentences with a grammar of realistic size, against torch-struct.

A step is the log-probability of all sentences and the expected counts of all rules. Both compute in float32.
"""

from __future__ import annotations

import torch

from benchmarks.task import Contender, Finish, Run, Task

SENTENCES, WORDS, NT, PT, V = 32, 40, 30, 30, 500


def data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draws root (NT,), rules (NT, S, S), emissions (PT, V) and sentences (sentences, words)."""
    generator = torch.Generator().manual_seed(0)

    def softmax(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).softmax(-1)

    rules = softmax(NT, (NT + PT) ** 2).reshape(NT, NT + PT, NT + PT)
    sentences = torch.randint(V, (SENTENCES, WORDS), generator=generator)
    return softmax(NT), rules, softmax(PT, V), sentences


def ours() -> Run:
    """PCFG of `ppl_em.distributions`: matrix products and a hand-written backward pass."""
    from ppl_em.distributions import PCFG

    root, rules, emissions, sentences = data()
    leaf = rules.clone().requires_grad_()

    def run(num_steps: int) -> Finish:
        log_prob = torch.zeros(())
        for _ in range(num_steps):
            log_prob = PCFG(root, leaf, emissions, validate_args=False).log_prob(sentences).sum()
            torch.autograd.grad(log_prob, leaf)
        return lambda: float(log_prob.detach())

    return run


def torch_struct() -> Run:
    """SentCFG of torch-struct, whose marginals come from automatic differentiation."""
    from torch_struct import SentCFG

    root, rules, emissions, sentences = data()
    terms = emissions.T[sentences].log()
    roots = root.log().expand(SENTENCES, NT)
    leaf = rules.log().requires_grad_()
    lengths = torch.full((SENTENCES,), WORDS)

    def run(num_steps: int) -> Finish:
        log_prob = torch.zeros(())
        for _ in range(num_steps):
            potentials = (terms, leaf.expand(SENTENCES, *leaf.shape), roots)
            log_prob = SentCFG(potentials, lengths=lengths).partition.sum()
            torch.autograd.grad(log_prob, leaf)
        return lambda: float(log_prob.detach())

    return run


TASK = Task(
    what=f"PCFG of {NT} nonterminals, {PT} preterminals, {SENTENCES} sentences of {WORDS} words, float32",
    contenders={"ppl_em": Contender(ours), "torch-struct": Contender(torch_struct)},
    num_steps=(1, 2),
    tolerance=0.1,  # nats in about 9,000: torch-struct sums logs in float32
    max_repeats=2,
    threads=(1,),
)
