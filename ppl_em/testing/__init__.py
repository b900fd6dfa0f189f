"""What a third party needs to trust an engine or an M-step rule of its own: random programs and conformance checks.

Example:
    >>> from ppl_em import testing
    >>> from ppl_em.exact.mixture import Mixture
    >>> testing.check_engine(Mixture(), seeds=range(3))
"""

from ppl_em.testing.engines import check_engine
from ppl_em.testing.generator import random_program
from ppl_em.testing.programs import RandomProgram
from ppl_em.testing.rules import check_rule

__all__ = ["RandomProgram", "check_engine", "check_rule", "random_program"]
