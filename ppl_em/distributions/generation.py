"""Drawing sentences from a grammar, of any length or of a given one."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_em.distributions.derivations import LogChart, descend, random_choice
from ppl_em.distributions.log_partition import parse
from ppl_em.errors import ModelError, message

__all__ = ["sample_sentences"]

MAX_WORDS = 10_000


def sample_sentences(
    root: Tensor, rules: Tensor, emissions: Tensor, lengths: Tensor | None, shape: torch.Size
) -> Tensor:
    """Draws sentences.

    Args:
        root: (…, S), probability of each root symbol.
        rules: (…, NT, S, S), probability of a → b c, nonterminals first.
        emissions: (…, PT, V), probability of each word given the preterminal.
        lengths: (…) int64 number of words, or None to let the grammar draw them.
        shape: Batch shape of the result, to which all arguments broadcast.

    Returns:
        (*shape, N) int64, padded with −1.

    Raises:
        ModelError: If the grammar has no sentence of a given length, or draws do not end.
    """
    draws = shape.numel()
    tables = [(root, 1), (rules, 3), (emissions, 2)]
    flat = [x.detach().reshape(-1, *x.shape[x.dim() - event :]) for x, event in tables]
    rows = [_rows(x.shape[: x.dim() - event], shape, x.device) for x, event in tables]
    if lengths is None:
        symbols, owners = _derive(flat[0], flat[1], rows[0], rows[1], rules.shape[-3])
    else:
        wanted = lengths.expand(shape).reshape(-1)
        symbols, owners = _derive_given_length(flat[0], flat[1], rows[0], rows[1], wanted)
    words = _categorical(flat[2][rows[2][owners], symbols])
    counts = torch.bincount(owners, minlength=draws)
    width = int(counts.max()) if draws else 0
    width = max(width, int(lengths.max()) if lengths is not None and lengths.numel() else 0)
    result = torch.full((draws, width), -1, dtype=torch.int64, device=root.device)
    result[torch.arange(width, device=root.device) < counts.unsqueeze(-1)] = words
    return result.reshape(*shape, width)


def _derive(root: Tensor, rules: Tensor, root_rows: Tensor, rule_rows: Tensor, nt: int) -> tuple[Tensor, Tensor]:
    """Rewrites all nonterminals at once until none is left; returns preterminals and their draws."""
    s = rules.shape[-1]
    owners = torch.arange(len(root_rows), device=root.device)
    symbols = _categorical(root[root_rows])
    while bool((expanding := symbols < nt).any()):
        pairs = _categorical(rules[rule_rows[owners[expanding]], symbols[expanding]].flatten(1))
        sizes = 1 + expanding.long()
        first = sizes.cumsum(0)[expanding] - 2
        owners = owners.repeat_interleave(sizes)
        symbols = symbols.repeat_interleave(sizes)
        symbols[first], symbols[first + 1] = pairs // s, pairs % s
        if int(torch.bincount(owners).max()) > MAX_WORDS:
            why = "its sentences have no finite mean length"
            hint = "giving lengths, or rules that choose preterminals more often"
            raise ModelError(message(f"a draw exceeds {MAX_WORDS} words", site="rules", why=why, hint=hint))
    return symbols - nt, owners


def _derive_given_length(
    root: Tensor, rules: Tensor, root_rows: Tensor, rule_rows: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Draws trees given the number of words; returns preterminals and the draw each belongs to."""
    nt, pt = rules.shape[1], rules.shape[2] - rules.shape[1]
    groups, inverse = torch.stack([root_rows, rule_rows, lengths], -1).unique(dim=0, return_inverse=True)
    preterminals: dict[int, list[int]] = {}
    for index, (r, g, n) in enumerate(groups.tolist()):
        members = (inverse == index).nonzero().squeeze(-1).tolist()
        if n == 0:
            preterminals.update((member, []) for member in members)
            continue
        anything = rules.new_ones(1, 1, n, pt, dtype=torch.float64)
        length = lengths.new_tensor([[n]])
        parsed = parse(root[[r]].double(), rules[[g]].double(), anything, length)
        if bool(parsed.log_z.isneginf().any()):
            hint = "other lengths, or a root that holds preterminals for one word"
            raise ModelError(message("the grammar has no sentence of that length", site="lengths", value=n, hint=hint))
        spans = parsed.chart.by_start.log() + parsed.chart.scale_by_start.unsqueeze(-1)
        tables = (parsed.root[0], parsed.rules[0], anything[0, 0])
        root_log, rules_log, words_log = (x.log().cpu().numpy() for x in tables)
        chart = LogChart(root_log, rules_log, words_log, spans[0, 0].cpu().numpy())
        trees = descend(chart, (0,) * n, len(members), random_choice())
        for member, tree in zip(members, trees, strict=True):
            preterminals[member] = [node.symbol - nt for node in tree.nodes if node.width == 1]
    ordered = [preterminals[member] for member in range(len(lengths))]
    symbols = torch.tensor([symbol for sentence in ordered for symbol in sentence], dtype=torch.int64)
    return symbols.to(root.device), torch.arange(len(ordered), device=root.device).repeat_interleave(lengths)


def _categorical(probs: Tensor) -> Tensor:
    """Draws one index from each row."""
    if len(probs) == 0:
        return torch.zeros(0, dtype=torch.int64, device=probs.device)
    return torch.multinomial(probs, 1).squeeze(-1)


def _rows(batch: torch.Size, shape: torch.Size, device: torch.device) -> Tensor:
    """Returns, for each draw, the row of an argument whose batch dims were flattened."""
    return torch.arange(batch.numel(), device=device).reshape(batch).expand(shape).reshape(-1)
