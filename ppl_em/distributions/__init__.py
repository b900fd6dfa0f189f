"""Distributions with a tractable hidden structure: grammars and alignments."""

from ppl_em.distributions.ctc import CTC
from ppl_em.distributions.grammar import Grammar
from ppl_em.distributions.normal_form import from_text
from ppl_em.distributions.pcfg import PCFG
from ppl_em.distributions.structured import (
    HiddenCost,
    StructuredDistribution,
    is_structured,
    register_structured,
    structured_distributions,
)

__all__ = [
    "CTC",
    "PCFG",
    "Grammar",
    "HiddenCost",
    "StructuredDistribution",
    "from_text",
    "is_structured",
    "register_structured",
    "structured_distributions",
]
