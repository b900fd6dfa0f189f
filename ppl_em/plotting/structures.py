"""Hidden structures inside an observed site: parse trees, and alignments of labels to frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ppl_em.distributions import CTC, PCFG
from ppl_em.distributions.trees import ParseTree
from ppl_em.em.structured import structured_sites, value_of
from ppl_em.errors import PplEmError, message
from ppl_em.plotting.style import COLOURS

if TYPE_CHECKING:
    from ppl_em.ir import Site
    from ppl_em.result import FitResult

#: Words of a sentence, and frames of a line, beyond which a picture cannot be read.
MOST_WORDS, MOST_FRAMES = 24, 200
#: Words side by side that have room without turning.
LEVEL_WORDS = 12


def trees(
    result: FitResult, ax: Any, name: str | None = None, row: int = 0, symbols: Sequence[str] | None = None
) -> None:
    """The most probable parse of one sentence.

    Words are named by ``coords={site: vocabulary}`` of the fit, else by their numbers.

    Args:
        result: a fit with a grammar.
        ax: the axis.
        name: the observed site; the first with a grammar by default.
        row: which sentence.
        symbols: names of nonterminals and preterminals.
    """
    site = structured_site(result, PCFG, name)
    posterior = result.posterior().structure(site.name, first=row + 1)
    tree, log_z = posterior.mode()[row], float(posterior.log_z[row])
    if len(tree.words) > MOST_WORDS:
        raise PplEmError(message(f"a sentence of {len(tree.words)} words is too long to draw", site=site.name))
    words = _names(result, site.name, tree.words)
    _draw_tree(ax, tree, words, symbols)
    share = torch.tensor(tree.log_prob - log_z).exp()
    ax.set_title(f"{site.name}[{row}]: the best parse has {float(share):.0%} of the probability of all")


def alignments(result: FitResult, ax: Any, name: str | None = None, row: int = 0) -> None:
    """Which frames spell which label: posterior probabilities, and the most probable alignment as a line.

    Labels are named by ``coords={site: names}`` of the fit, else by their numbers; – is the blank.

    Args:
        result: a fit with CTC.
        ax: the axis.
        name: the observed site; the first with alignments by default.
        row: which label sequence.
    """
    site = structured_site(result, CTC, name)
    posterior = result.posterior().structure(site.name, first=row + 1)
    best = posterior.mode()
    classes, positions = best.classes[row], best.positions[row]
    used = int((classes >= 0).sum())
    if used > MOST_FRAMES:
        raise PplEmError(message(f"{used} frames are too many to draw", site=site.name))
    positions = positions[:used]
    labels = [int(classes[:used][positions == p][0]) for p in range(int(positions.max()) + 1)] if used else []
    states = ["–", *(text for label in _names(result, site.name, labels) for text in (label, "–"))]
    probabilities = posterior.state_marginals()[row, :used, : len(states)]
    # A blank lies between two labels: after as many as have been spelled before it.
    spelled = torch.where(positions >= 0, positions + 1, 0).cummax(0).values
    path = torch.where(positions >= 0, 2 * positions + 1, 2 * spelled)
    ax.imshow(probabilities.double().numpy().T, aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    ax.step(range(used), path.numpy(), where="mid", color=COLOURS[1], lw=1.2, label="most probable alignment")
    ax.set_yticks(range(len(states)), states)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel("frame")
    ax.set_ylabel("label (– blank)")
    ax.legend(loc="upper right")
    share = float((best.log_prob[row] - posterior.log_z[row]).double().exp())
    ax.set_title(f"{site.name}[{row}]: the best alignment has {share:.0%} of the probability of all")


def drawable(result: FitResult, kind: type, count: int) -> list[int]:
    """The first `count` different values of a structured site that are not too long to be read.

    Args:
        result: a fit.
        kind: PCFG or CTC.
        count: how many at most.
    """
    value = value_of(structured_site(result, kind, None))
    rows: list[int] = []
    seen: set[tuple[int, ...]] = set()
    for row, sequence in enumerate(value.reshape(-1, value.shape[-1]).tolist()):
        labels = tuple(label for label in sequence if label >= 0)
        if len(rows) < count and labels not in seen and 1 < len(labels) <= MOST_WORDS:
            rows.append(row)
            seen.add(labels)
    return rows


def structured_site(result: FitResult, kind: type, name: str | None) -> Site:
    """The observed site with such a distribution whose leading dimension is a plate.

    Args:
        result: a fit.
        kind: PCFG or CTC.
        name: of the site; the first by default.

    Raises:
        PplEmError: there is none.
    """
    for site in structured_sites(result._plan_for(())):
        if site.family is not None and issubclass(site.family, kind) and name in (None, site.name):
            if (*site.dims, *site.inner) == tuple(site.plates) and len(site.plates) == 1:
                return site
    why = "it lives in one plate and depends on no summed latent"
    raise PplEmError(message(f"no observed site with {kind.__name__} that can be drawn", site=str(name or ""), why=why))


def _names(result: FitResult, site: str, labels: Sequence[int]) -> list[str]:
    known = result._coords.get(site)
    return [str(label) if known is None else str(known[label]) for label in labels]


def _draw_tree(ax: Any, tree: ParseTree, words: list[str], symbols: Sequence[str] | None) -> None:
    """Constituents over the middle of their words, each above all that it holds."""
    nt = tree.num_nonterminals
    heights: dict[tuple[int, int], int] = {}
    for node in sorted(tree.nodes, key=lambda n: n.width):
        inside = [h for (s, w), h in heights.items() if s >= node.start and s + w <= node.start + node.width]
        heights[node.start, node.width] = 1 + max(inside, default=0)
    for node in tree.nodes:
        x, y = node.start + (node.width - 1) / 2, heights[node.start, node.width]
        for start, width in _children(tree, node):
            ax.plot(
                [x, start + (width - 1) / 2], [y, heights.get((start, width), 0)], color="#999999", lw=0.8, zorder=1
            )
        if node.width == 1:
            ax.plot([x, x], [y, 0], color="#999999", lw=0.8, zorder=1)
        number = node.symbol if node.symbol < nt else node.symbol - nt
        text = symbols[node.symbol] if symbols is not None else f"{'N' if node.symbol < nt else 'P'}{number}"
        shape = {"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none"}
        ax.text(x, y, text, ha="center", va="center", color=COLOURS[0 if node.symbol < nt else 2], bbox=shape)
    turned = len(words) > LEVEL_WORDS
    ax.set_xticks(range(len(words)), words, rotation=60 if turned else 0, ha="right" if turned else "center")
    ax.set_xlim(-0.6, len(words) - 0.4)
    ax.set_ylim(0, max(heights.values()) + 0.6)
    ax.set_yticks([])
    ax.tick_params(axis="x", length=0)
    ax.spines[:].set_visible(False)


def _children(tree: ParseTree, node: Any) -> list[tuple[int, int]]:
    """Start and width of the two constituents of a constituent; none of a word class."""
    if node.width == 1:
        return []
    index = tree.nodes.index(node)
    left = tree.nodes[index + 1]
    return [(left.start, left.width), (node.start + left.width, node.width - left.width)]
