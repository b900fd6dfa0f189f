"""A check is a value: a question, what was found, what was wanted, and what to do next."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

import pandas as pd

from ppl_em.errors import PplEmError

if TYPE_CHECKING:
    from ppl_em.result import FitResult


class Outcome(Enum):
    """What came of a check; ``NOT_RUN`` is never a pass."""

    PASS = "pass"
    FAIL = "fail"
    NOT_RUN = "not run"
    REPORTED = "reported"


#: Sign of each outcome: told apart without colour.
SIGNS = {Outcome.PASS: "✓", Outcome.FAIL: "✗", Outcome.NOT_RUN: "–", Outcome.REPORTED: "·"}
#: Okabe and Ito's colours, dark enough for text.
COLOURS = {Outcome.PASS: "#00694d", Outcome.FAIL: "#a63d00", Outcome.NOT_RUN: "#555555", Outcome.REPORTED: "#005a94"}


@dataclass(frozen=True)
class Check:
    """One check.

    Args:
        name: short, e.g. ``"restarts"``.
        question: what a person wants to know.
        outcome: what came of it.
        found: in words, with numbers and units.
        wanted: in words.
        advice: the next action, where the outcome is not a pass.
        about: ``"fit"`` (a failure makes everything worthless), ``"uncertainty"`` (only intervals and comparisons)
            or ``"model"`` (how it describes the data).
        value, threshold: the numbers compared, if it is one.

    Example:
        >>> Check("size", "Are there enough data?", Outcome.PASS, "272 data", "at least 100", value=272, threshold=100).ok
        True
    """

    name: str
    question: str
    outcome: Outcome
    found: str
    wanted: str
    advice: str = ""
    about: str = "fit"
    value: float | None = None
    threshold: float | None = None

    @property
    def ok(self) -> bool:
        """Neither failed nor left undone."""
        return self.outcome in (Outcome.PASS, Outcome.REPORTED)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "outcome": self.outcome.value}


@dataclass(frozen=True)
class Diagnosis:
    """All checks of a fit.

    Args:
        checks: in order.
    """

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """True only if every check that applies was run and none failed."""
        return all(c.ok for c in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        """Checks that failed."""
        return tuple(c for c in self.checks if c.outcome is Outcome.FAIL)

    @property
    def outcome(self) -> Outcome:
        """The worst outcome."""
        if self.failures:
            return Outcome.FAIL
        return Outcome.PASS if self.ok else Outcome.NOT_RUN

    @property
    def verdict(self) -> str:
        """One sentence: what can be trusted, and the first thing to do where it cannot."""
        by_subject = {s: [c for c in self.failures if c.about == s] for s in ("fit", "uncertainty", "model")}
        if by_subject["fit"]:
            first = by_subject["fit"][0]
            return f"Do not trust this fit: {first.found}. {_sentence(first.advice)}".strip()
        if by_subject["uncertainty"]:
            first = by_subject["uncertainty"][0]
            return f"The estimates can be trusted, their uncertainty cannot: {first.found}. {_sentence(first.advice)}".strip()
        if by_subject["model"]:
            first = by_subject["model"][0]
            return f"The fit can be trusted, but the model does not describe the data: {first.found}. {_sentence(first.advice)}".strip()
        undone = [c.name for c in self.checks if c.outcome is Outcome.NOT_RUN]
        passed = sum(c.outcome is Outcome.PASS for c in self.checks)
        if undone:
            return f"Nothing speaks against this fit, but not everything was checked: {', '.join(undone)} not run."
        return f"This fit can be trusted: all {passed} checks passed."

    def table(self) -> pd.DataFrame:
        """One row for each check."""
        rows = [
            {
                "outcome": c.outcome.value,
                "question": c.question,
                "found": c.found,
                "wanted": c.wanted,
                "advice": c.advice,
            }
            for c in self.checks
        ]
        return pd.DataFrame(rows, index=pd.Index([c.name for c in self.checks], name="check"))

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"ok": self.ok, "verdict": self.verdict, "checks": [c.to_dict() for c in self.checks]}

    def __str__(self) -> str:
        lines = [self.verdict]
        for c in self.checks:
            lines.append(f"  {SIGNS[c.outcome]} {c.outcome.value:<8}  {c.question}")
            lines.append(f"              found {c.found}; wanted {c.wanted}")
            if c.advice and c.outcome is not Outcome.PASS:
                lines.append(f"              next: {c.advice}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><td style="color:{COLOURS[c.outcome]};white-space:nowrap">{SIGNS[c.outcome]} {c.outcome.value}</td>'
            + "".join(
                f'<td style="text-align:left">{html.escape(t)}</td>' for t in (c.question, c.found, c.wanted, c.advice)
            )
            + "</tr>"
            for c in self.checks
        )
        head = "".join(
            f'<th style="text-align:left">{h}</th>' for h in ("", "question", "found", "wanted", "what to do")
        )
        return f"<p><b>{html.escape(self.verdict)}</b></p><table><tr>{head}</tr>{rows}</table>"


def run_checks(result: FitResult, checks: Sequence[Callable[[FitResult], Check | None]]) -> Diagnosis:
    """Run checks on a result.

    Args:
        result: a fit.
        checks: each returns a check, or None where it does not apply. One that raises an error of this package
            becomes "not run" with the error as the reason.
    """
    found = []
    for check in checks:
        try:
            outcome = check(result)
        except PplEmError as error:
            name = check.__name__.replace("_", " ")
            question = (check.__doc__ or name).strip().split("\n")[0]
            outcome = Check(name, question, Outcome.NOT_RUN, " ".join(str(error).split()), "the check to run")
        if outcome is not None:
            found.append(outcome)
    return Diagnosis(tuple(found))


def _sentence(text: str) -> str:
    """A text as a sentence; one that begins with code keeps its first letter."""
    first = text.split(" ")[0]
    head = text[:1].upper() if first.isalpha() else text[:1]
    return head + text[1:] + ("." if text and not text.endswith(".") else "")
