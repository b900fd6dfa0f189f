"""Reading context-free grammars as text, in the form that NLTK reads."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ppl_em.errors import ModelError, message

__all__ = ["Production", "Word", "read_productions"]

_TOKEN = re.compile(
    r"""\s*(?: (?P<arrow>->) | (?P<bar>\|) | \[(?P<prob>[^\]]*)\] | '(?P<single>[^']*)' | "(?P<double>[^"]*)"
        | (?P<symbol>[\w/][\w/^<>-]*?)(?=->|[\s|\['"]|$) )""",
    re.VERBOSE,
)


class Word(str):
    """A terminal symbol; a plain string is a nonterminal."""

    __slots__ = ()


@dataclass(frozen=True)
class Production:
    """A rule of a grammar.

    Attributes:
        parent: The symbol that is rewritten.
        children: What it is rewritten to, nonterminals and words.
        prob: Probability given the parent.
    """

    parent: str
    children: tuple[str, ...]
    prob: float


def read_productions(text: str) -> tuple[str, list[Production]]:
    r"""Reads a grammar.

    One rule a line: ``VP -> V NP [0.7] | 'runs' [0.3]``; words in quotes, the probability in brackets.
    Comments begin with ``#``, ``\`` at a line's end continues it, ``%start S`` names the start symbol (the
    first parent otherwise). A parent none of whose rules has a probability chooses uniformly. Probabilities
    that sum to one within 0.01 are normalised.

    Returns:
        The start symbol and the productions.

    Raises:
        ModelError: If a line cannot be read, a symbol has no rules, or probabilities do not sum to one.
    """
    start, raw = None, []
    for line in text.replace("\\\n", " ").splitlines():
        line = line.strip()
        if line.startswith("%start"):
            start = line.split()[1]
        elif line and not line.startswith("#"):
            raw.extend(_read_line(line))
    if not raw:
        raise ModelError(message("the grammar has no rules", hint="lines like: S -> NP VP [1.0]"))
    productions = _with_probabilities(raw)
    start = start or raw[0][0]
    parents = {production.parent for production in productions}
    used = {start, *(c for p in productions for c in p.children if not isinstance(c, Word))}
    if missing := sorted(used - parents):
        hint = f"a rule '{missing[0]} -> …', or quotes around words"
        raise ModelError(message("symbols without a rule", value=", ".join(missing), hint=hint))
    return start, productions


def _read_line(line: str) -> list[tuple[str, tuple[str, ...], float | None]]:
    tokens = _tokens(line)
    if len(tokens) < 2 or tokens[0][0] != "symbol" or tokens[1][0] != "arrow":
        raise ModelError(message("a rule needs a symbol and an arrow", value=line, hint="S -> NP VP [1.0]"))
    parent, rules = tokens[0][1], []
    children: list[str] = []
    prob: float | None = None
    for kind, content in [*tokens[2:], ("bar", "|")]:
        if kind == "bar":
            if not children:
                why = "the normal form has no empty words"
                raise ModelError(message("a rule without children", value=line, why=why, hint="removing empty rules"))
            rules.append((parent, tuple(children), prob))
            children, prob = [], None
        elif prob is not None or kind == "arrow":
            raise ModelError(
                message(f"unexpected '{content}' in a rule", value=line, hint="A -> B C [0.5] | 'd' [0.5]")
            )
        elif kind == "prob":
            prob = _probability(content, line)
        else:
            children.append(content if kind == "symbol" else Word(content))
    return rules


def _tokens(line: str) -> list[tuple[str, str]]:
    position, tokens = 0, []
    while position < len(line.rstrip()):
        match = _TOKEN.match(line, position)
        if match is None or match.lastgroup is None:
            raise ModelError(message(f"cannot read '{line[position:]}'", value=line, hint="A -> B 'word' [0.5]"))
        tokens.append((match.lastgroup, match[match.lastgroup]))
        position = match.end()
    return tokens


def _probability(content: str, line: str) -> float:
    try:
        prob = float(content)
    except ValueError:
        prob = -1.0
    if not 0 <= prob <= 1:
        raise ModelError(message(f"'{content}' is no probability", value=line, hint="a number between 0 and 1"))
    return prob


def _with_probabilities(raw: list[tuple[str, tuple[str, ...], float | None]]) -> list[Production]:
    productions = []
    for parent in dict.fromkeys(parent for parent, *_ in raw):
        rules = [(children, prob) for p, children, prob in raw if p == parent]
        given = [prob for _, prob in rules if prob is not None]
        if given and len(given) < len(rules):
            why = "some of its rules have a probability and some have none"
            raise ModelError(message(f"symbol '{parent}'", why=why, hint="giving all or none"))
        probs = given or [1 / len(rules)] * len(rules)
        total = sum(probs)
        if abs(total - 1) > 0.01:
            hint = "probabilities that sum to one"
            raise ModelError(message(f"the rules of '{parent}' do not sum to one", value=total, hint=hint))
        pairs = zip(rules, probs, strict=True)
        productions += [Production(parent, children, prob / total) for (children, _), prob in pairs if prob > 0]
    return productions
