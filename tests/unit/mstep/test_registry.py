"""The registry: which rule a family gets, and what a family without one is told."""

import pyro.distributions as dist
import pytest
import torch

from ppl_em.mstep import Argument, Block, NoClosedForm, Registry, WeightedSample, weighted_mle


def one_row(**args):
    arguments = {name: Argument(torch.tensor([value]), torch.tensor([0])) for name, value in args.items()}
    block = Block(torch.ones(1, 3), torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0]))
    return WeightedSample(arguments, (block,), num_rows=1)


def test_torch_and_pyro_classes_share_their_rule():
    assert weighted_mle[torch.distributions.Normal] is weighted_mle[dist.Normal]
    assert torch.distributions.MultivariateNormal in weighted_mle


def test_a_subclass_inherits_the_rule():
    class Decibel(dist.Normal):
        pass

    assert weighted_mle[Decibel] is weighted_mle[dist.Normal]


def test_a_subclass_with_other_arguments_has_no_closed_form():
    sample = one_row(df=2.0)
    with pytest.raises(NoClosedForm, match="df"):
        weighted_mle[torch.distributions.Chi2](sample)


def test_a_missing_family_prints_a_rule_to_fill_in_that_runs():
    registry = Registry()
    with pytest.raises(KeyError) as error:
        registry[dist.Poisson]
    code = error.value.args[0].split("Try registering one:\n")[1]
    namespace = {"Poisson": dist.Poisson}
    exec(code.replace("from ppl_em.mstep import weighted_mle", ""), {"weighted_mle": registry, **namespace})
    sample = one_row(rate=1.0)
    registry[dist.Poisson](sample)
    assert float(sample.proposals["rate"]) == pytest.approx(3.0)


def test_a_rule_must_propose_every_free_argument():
    registry = Registry()

    @registry.register(dist.Normal)
    def only_loc(sample):
        sample.propose("loc", sample.pool("loc", sample.sum()) / sample.mass("loc"))

    with pytest.raises(NoClosedForm, match="scale"):
        registry[dist.Normal](one_row(loc=0.0, scale=1.0))


def test_promises_are_recorded():
    assert weighted_mle[dist.Normal].exact is True
    assert weighted_mle[dist.Gamma].exact == "newton"
    assert weighted_mle[dist.LowRankMultivariateNormal].exact == "newton"
