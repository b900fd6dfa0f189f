"""CTC against all alignments and against torch's own loss; decoding against all label sequences."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict

import pytest
import torch
from torch import Tensor
from torch.nn.functional import ctc_loss

from ppl_em.distributions import CTC
from ppl_em.errors import DataError, ModelError
from tests.tolerances import BRUTE_FORCE, EXACT, GRADIENT, STATISTICAL
from tests.unit.distributions.brute_force import scored_paths

BLANKS = [0, 2]


def close(found: Tensor, expected: Tensor, atol: float = BRUTE_FORCE) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def every_sequence(frames: int, classes: int, blank: int) -> Tensor:
    """Returns all label sequences of up to `frames` labels, padded with −1."""
    labels = [c for c in range(classes) if c != blank]
    rows = [
        [*labelling, *[-1] * (frames - n)]
        for n in range(frames + 1)
        for labelling in itertools.product(labels, repeat=n)
    ]
    return torch.tensor(rows)


@pytest.mark.parametrize("blank", BLANKS)
@pytest.mark.parametrize("excluded", [False, True])
def test_log_prob_sums_over_all_alignments(blank: int, excluded: bool) -> None:
    logits = torch.randn(5, 4)
    if excluded:
        logits[2, 1], logits[3, blank] = -torch.inf, -torch.inf
    value = every_sequence(5, 4, blank)
    expected: dict[tuple[int, ...], list[float]] = defaultdict(list)
    for log_prob, _, labels in scored_paths(logits.log_softmax(-1), blank):
        expected[labels].append(log_prob)
    found = CTC(logits, blank=blank, validate_args=True).log_prob(value)
    for log_prob, row in zip(found, value.tolist(), strict=True):
        scores = expected[tuple(label for label in row if label >= 0)]
        close(log_prob, torch.tensor(scores or [-torch.inf]).logsumexp(0))
    close(found.logsumexp(0), torch.tensor(0.0))


@pytest.mark.parametrize("blank", BLANKS)
def test_posterior_over_all_alignments(blank: int) -> None:
    logits = torch.randn(5, 4)
    log_probs = logits.log_softmax(-1)
    for labels in ([1, 1], [3], [1, 3, 1], []):
        paths = [(lp, path) for lp, path, collapsed in scored_paths(log_probs, blank) if collapsed == tuple(labels)]
        scores = torch.tensor([lp for lp, _ in paths])
        weights = scores.softmax(0)
        expected = torch.zeros(5, 4)
        for weight, (_, path) in zip(weights, paths, strict=True):
            expected[torch.arange(5), list(path)] += weight
        value = torch.tensor([*labels, *[-1] * (4 - len(labels))])
        distribution = CTC(logits, blank=blank)
        posterior = distribution.posterior(value)
        close(posterior.class_marginals(), expected)
        close(distribution.expected_counts(value)["logits"], expected)
        close(posterior.state_marginals().sum(-1), torch.ones(5))
        close(posterior.entropy(), torch.special.entr(weights).sum())
        best = posterior.mode()
        assert tuple(best.classes.tolist()) == paths[int(scores.argmax())][1]
        close(best.log_prob, scores.max())
        spelled = [labels[p] if p >= 0 else blank for p in best.positions.tolist()]
        assert spelled == best.classes.tolist()
        draws = 10_000
        sampled = posterior.sample(draws, torch.Generator().manual_seed(0))
        counted = Counter(map(tuple, sampled.classes.tolist()))
        for weight, (_, path) in zip(weights.tolist(), paths, strict=True):
            assert abs(counted.pop(path, 0) / draws - weight) < STATISTICAL * (weight / draws) ** 0.5 + 1 / draws
        assert not counted


@pytest.mark.parametrize("blank", BLANKS)
def test_agrees_with_torch_on_ragged_batches(blank: int) -> None:
    logits = torch.randn(6, 20, 5, requires_grad=True)
    labels = [c for c in range(5) if c != blank]
    value = torch.tensor(labels)[torch.randint(4, (6, 7))]
    input_lengths, target_lengths = torch.randint(14, 21, (6,)), torch.randint(0, 8, (6,))
    found = CTC(logits, input_lengths, target_lengths, blank).log_prob(value)
    frames = logits.log_softmax(-1).transpose(0, 1)
    expected = -ctc_loss(frames, value, input_lengths, target_lengths, blank, reduction="none")
    close(found, expected, EXACT * 100)
    weights = torch.rand(6)
    (slope,) = torch.autograd.grad((found * weights).sum(), logits)
    (reference,) = torch.autograd.grad((expected * weights).sum(), logits)
    close(slope, reference, GRADIENT)
    # The same by padding instead of lengths, and alone instead of in a batch.
    padded = value.masked_fill(torch.arange(7) >= target_lengths[:, None], -1)
    close(CTC(logits, input_lengths, blank=blank).log_prob(padded), found)
    for row, n in enumerate(input_lengths.tolist()):
        close(CTC(logits[row, :n], blank=blank).log_prob(padded[row]), found[row])


def test_derivative_by_logits_is_marginals_minus_softmax() -> None:
    logits = torch.randn(3, 9, 4, requires_grad=True)
    value = torch.tensor([[1, 2, 3], [1, 1, -1], [3, -1, -1]])
    distribution = CTC(logits)
    (slope,) = torch.autograd.grad(distribution.log_prob(value).sum(), logits)
    close(slope, distribution.posterior(value).class_marginals() - logits.softmax(-1), GRADIENT)


def test_gradients_of_first_and_second_order() -> None:
    value = torch.tensor([[1, 1], [2, -1], [1, 2], [2, 2]])
    frames = torch.tensor([4, 3, 2, 2])  # too few for the last
    logits = torch.randn(4, 4, 3, requires_grad=True)

    def log_prob(x: Tensor) -> Tensor:
        return CTC(x, frames).log_prob(value)[:3]

    assert torch.autograd.gradcheck(log_prob, logits)
    assert torch.autograd.gradgradcheck(log_prob, logits)


@pytest.mark.parametrize("excluded", [False, True])
def test_impossible_sequences_have_no_probability_and_no_gradient(excluded: bool) -> None:
    logits = torch.randn(4, 3, 3)
    if excluded:
        logits[3, :, 1] = -torch.inf
    logits.requires_grad_()
    value = torch.tensor([[1, 2, 1, 2], [1, 1, 1, -1], [1, 2, -1, -1], [1, -1, -1, -1]])
    distribution = CTC(logits, torch.tensor([3, 3, 0, 3]))
    log_prob = distribution.log_prob(value)
    assert log_prob.isneginf().tolist() == [True, True, True, excluded]
    (slope,) = torch.autograd.grad(log_prob.sum(), logits)
    assert not slope[:3].any()
    assert slope.isfinite().all()
    assert bool(slope[3].any()) != excluded
    assert distribution.expected_counts(value)["logits"].sum() == pytest.approx(0 if excluded else 3)
    with pytest.raises(DataError, match=r"label sequences have no alignment.*\[\(0,\), \(1,\), \(2,\)"):
        distribution.posterior(value)


def test_no_frames_spell_only_the_empty_sequence() -> None:
    found = CTC(torch.randn(2, 3, 3), torch.tensor([0, 0])).log_prob(torch.tensor([[-1], [1]]))
    assert found.tolist() == [0.0, -torch.inf]


def test_shared_logits_collect_counts_and_normalise_to_their_mean() -> None:
    logits = torch.randn(6, 4)
    value = torch.tensor([[1, 2], [3, -1], [2, 2]])
    shared = CTC(logits)
    counts = shared.expected_counts(value)
    close(counts["logits"], shared.posterior(value).class_marginals().sum(0))
    before = shared.log_prob(value).sum()
    after = CTC(**shared.normalised(counts)).log_prob(value).sum()
    assert after > before
    close(shared.normalised(counts)["logits"].exp(), counts["logits"] / 3)


def test_shapes_and_expand() -> None:
    distribution = CTC(torch.randn(5, 1, 6, 4))
    assert (distribution.batch_shape, distribution.event_shape) == ((5, 1), (6,))
    wide = distribution.expand((5, 3))
    value = torch.randint(1, 4, (3, 2))
    assert wide.log_prob(value).shape == (5, 3)
    close(wide.log_prob(value)[2, 1], CTC(distribution.logits[2, 0]).log_prob(value[1]))
    assert CTC(torch.randn(6, 4), target_lengths=torch.tensor([3, 1])).event_shape == (3,)


def test_float32_keeps_up_with_float64() -> None:
    logits = torch.randn(2, 300, 8).float()
    value = torch.randint(1, 8, (2, 40))
    single, double = CTC(logits).log_prob(value), CTC(logits.double()).log_prob(value)
    assert single.dtype is torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-6, atol=0)
    found, expected = CTC(logits).expected_counts(value), CTC(logits.double()).expected_counts(value)
    torch.testing.assert_close(found["logits"].double(), expected["logits"], rtol=0, atol=1e-3)


@pytest.mark.parametrize("blank", BLANKS)
def test_wide_beam_finds_the_most_probable_labels(blank: int) -> None:
    logits = 2 * torch.randn(3, 5, 4)
    lengths = torch.tensor([5, 4, 2])
    for row, hypotheses in enumerate(CTC(logits, lengths, blank=blank).beam_search(10_000)):
        expected: dict[tuple[int, ...], float] = defaultdict(float)
        for log_prob, _, labels in scored_paths(logits[row, : lengths[row]].log_softmax(-1), blank):
            expected[labels] += float(torch.tensor(log_prob).exp())
        found = {hypothesis.labels: hypothesis.log_prob for hypothesis in hypotheses}
        assert found.keys() == expected.keys()
        assert hypotheses[0].labels == max(expected, key=expected.__getitem__)
        for labels, prob in expected.items():
            close(torch.tensor(found[labels]), torch.tensor(prob).log())


def test_narrow_beam_gives_lower_bounds_and_drops_no_certain_answer() -> None:
    logits = torch.randn(12, 5)
    distribution = CTC(logits)
    (hypotheses,) = distribution.beam_search(4)
    assert len(hypotheses) == 4
    for hypothesis in hypotheses:
        exact = distribution.log_prob(torch.tensor(hypothesis.labels, dtype=torch.int64))
        assert hypothesis.log_prob <= float(exact) + EXACT
    certain = torch.full((6, 4), -20.0)
    certain[torch.arange(6), torch.tensor([1, 1, 0, 1, 3, 3])] = 20.0
    assert CTC(certain).beam_search(1)[0][0].labels == (1, 1, 3)


def test_draws_have_the_probability_of_the_labels() -> None:
    distribution, draws = CTC(torch.randn(3, 3), blank=1), 20_000
    value = distribution.sample((draws,))
    assert value.shape == (draws, 3)
    assert distribution.support.check(value).all()
    sequences, counts = value.unique(dim=0, return_counts=True)
    probs = distribution.log_prob(sequences).exp()
    assert ((counts / draws - probs).abs() < STATISTICAL * (probs / draws).sqrt()).all()


def test_draws_of_a_given_length_follow_the_distribution_given_the_length() -> None:
    logits, draws = torch.randn(5, 4), 20_000
    value = CTC(logits, torch.tensor([5, 3]), torch.tensor([2, 3]), blank=1).sample((draws,))
    assert value.shape == (draws, 2, 3)
    assert (value[:, 0, 2] == -1).all()
    for row, frames in enumerate([5, 3]):
        n = [2, 3][row]
        sequences, counts = value[:, row, :n].unique(dim=0, return_counts=True)
        every = torch.tensor(list(itertools.product([0, 2, 3], repeat=n)))
        log_probs = CTC(logits[:frames], blank=1).log_prob(every)
        log_probs = CTC(logits[:frames], blank=1).log_prob(sequences) - log_probs.logsumexp(0)
        probs = log_probs.exp()
        assert ((counts / draws - probs).abs() < STATISTICAL * (probs / draws).sqrt()).all()
    with pytest.raises(ModelError, match="no alignment has that many labels at site 'target_lengths'"):
        CTC(logits, target_lengths=torch.tensor(6)).sample()


def test_wrong_arguments_and_values_are_named_errors() -> None:
    logits = torch.randn(4, 3)
    with pytest.raises(ModelError, match="with the blank 3 among the C classes at site 'logits'"):
        CTC(logits, blank=3)
    with pytest.raises(ModelError, match="exceeds the 4 frames at site 'input_lengths'"):
        CTC(logits, torch.tensor(5))
    distribution = CTC(logits, target_lengths=torch.tensor(2), validate_args=True)
    with pytest.raises(DataError, match="or the blank 0, before their end"):
        distribution.log_prob(torch.tensor([1, 0]))
    with pytest.raises(DataError, match="exceeds the width"):
        distribution.log_prob(torch.tensor([1]))
    with pytest.raises(DataError, match="integers"):
        distribution.log_prob(torch.tensor([1.0, 2.0]))


def test_predicted_cost_grows_with_frames_and_labels() -> None:
    small = CTC(torch.randn(3, 10, 4)).hidden_cost(torch.Size([3, 2]))
    longer = CTC(torch.randn(3, 40, 4)).hidden_cost(torch.Size([3, 2]))
    assert longer.flops == 4 * small.flops
    assert longer.bytes == 4 * small.bytes
    assert CTC(torch.randn(3, 10, 4)).hidden_cost(torch.Size([3, 8])).flops > small.flops
