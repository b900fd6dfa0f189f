"""Parse trees, and their text form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Node", "ParseTree"]


class Node(NamedTuple):
    """One constituent.

    Attributes:
        symbol: Nonterminals are 0 … NT − 1, preterminals NT … NT + PT − 1.
        start: Position of its first word.
        width: Number of its words.
    """

    symbol: int
    start: int
    width: int


@dataclass(frozen=True)
class ParseTree:
    """A binary parse tree over a sentence.

    Attributes:
        nodes: Constituents, parents before children, left before right.
        words: The sentence.
        num_nonterminals: Number of nonterminals NT of the grammar.
        log_prob: Log-probability of tree and sentence together, in nats.
    """

    nodes: tuple[Node, ...]
    words: tuple[int, ...]
    num_nonterminals: int
    log_prob: float

    def bracketed(self, symbols: Sequence[str] | None = None, vocabulary: Sequence[str] | None = None) -> str:
        """Returns the tree in brackets, as nltk.Tree.fromstring reads it.

        Args:
            symbols: Name of each symbol; N0, N1, … and P0, P1, … if None.
            vocabulary: The words; their numbers if None.

        Example:
            >>> tree = ParseTree((Node(0, 0, 2), Node(1, 0, 1), Node(2, 1, 1)), (4, 7), 1, -1.0)
            >>> tree.bracketed()
            '(N0 (P0 4) (P1 7))'
            >>> tree.bracketed(symbols=("S", "Det", "N"))
            '(S (Det 4) (N 7))'
        """
        pieces: list[str] = []
        open_ends: list[int] = []
        for symbol, start, width in self.nodes:
            while open_ends and open_ends[-1] <= start:
                pieces.append(")")
                open_ends.pop()
            pieces.append(f" ({self._name(symbol, symbols)}")
            open_ends.append(start + width)
            if symbol >= self.num_nonterminals:
                word = self.words[start]
                pieces.append(f" {word if vocabulary is None else vocabulary[word]}")
        return ("".join(pieces) + ")" * len(open_ends)).lstrip()

    def rules(self) -> list[tuple[int, int, int]]:
        """Returns the binary rules used, (parent, left, right), parents before children."""
        by_place = {(node.start, node.width): node for node in self.nodes}
        used = []
        for index, node in enumerate(self.nodes):
            if node.symbol < self.num_nonterminals:
                left = self.nodes[index + 1]
                right = by_place[(node.start + left.width, node.width - left.width)]
                used.append((node.symbol, left.symbol, right.symbol))
        return used

    def _name(self, symbol: int, symbols: Sequence[str] | None) -> str:
        if symbols is not None:
            return symbols[symbol]
        nt = self.num_nonterminals
        return f"N{symbol}" if symbol < nt else f"P{symbol - nt}"
