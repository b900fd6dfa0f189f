"""The registry of weighted maximum-likelihood rules: distribution family → rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ppl_em.mstep.sample import NoClosedForm, WeightedSample

Exactness = Literal[True, "newton", "ascent", "em"]
Residual = Callable[[WeightedSample], Tensor]


@dataclass(frozen=True)
class Rule:
    """One family's rule.

    Attributes:
        family: the class that it was registered for.
        fit: proposes new values for every free argument of a sample.
        exact: ``True`` for a closed form, ``"newton"`` for an inner iteration run to rounding, ``"ascent"``
            for a rule that only promises not to decrease the likelihood, ``"em"`` for one that does so in closed form
            from expected statistics of data that are missing.
        residuals: first-order conditions of arguments where the plain gradient does not vanish at the maximum
            (a kink or the edge of the support): argument name → scaled residual of each cell.
        ceilings: largest values that are proposed where the likelihood may have no maximum: argument name →
            value.
    """

    family: type
    fit: Callable[[WeightedSample], None]
    exact: Exactness
    residuals: dict[str, Residual]
    ceilings: dict[str, float]

    def __call__(self, sample: WeightedSample) -> None:
        """Propose new values for all free arguments.

        Raises:
            NoClosedForm: the rule does not cover this structure of ties or these arguments.
        """
        free = [name for name in sample.args if sample.free(name)]
        if free:
            self.fit(sample)
        missed = [name for name in free if name not in sample.proposals]
        if missed:
            raise NoClosedForm(f"the rule of {self.family.__name__} proposes nothing for {', '.join(missed)}")


class Registry:
    """Weighted maximum-likelihood rules by distribution family.

    Example:
        >>> import pyro.distributions as dist
        >>> weighted_mle[dist.Poisson].exact
        True
    """

    def __init__(self) -> None:
        self._rules: dict[type, Rule] = {}
        self._makers: dict[type, Callable[[Any], Rule | None]] = {}

    def register(
        self,
        *families: type,
        exact: Exactness = True,
        residuals: dict[str, Residual] | None = None,
        ceilings: dict[str, float] | None = None,
    ) -> Callable[[Callable[[WeightedSample], None]], Callable[[WeightedSample], None]]:
        """Decorator that makes a function the rule of one or more families.

        Args:
            families: distribution classes; a Pyro class stands for its torch namesake too.
            exact: what the rule promises, see `Rule`.
            residuals: see `Rule`.
            ceilings: see `Rule`.
        """

        def decorate(fit: Callable[[WeightedSample], None]) -> Callable[[WeightedSample], None]:
            for family in families:
                key = _namesake(family)
                self._rules[key] = Rule(family, fit, exact, dict(residuals or {}), dict(ceilings or {}))
            return fit

        return decorate

    def derive(self, base: type) -> Callable[[Callable[[Any], Rule | None]], Callable[[Any], Rule | None]]:
        """Decorator of a function that makes the rule of each family derived from a class (mixtures, say).

        Args:
            base: the class; the function gets the family and returns its rule, None where it has none.
        """

        def decorate(make: Callable[[Any], Rule | None]) -> Callable[[Any], Rule | None]:
            self._makers[base] = make
            return make

        return decorate

    def __contains__(self, family: Any) -> bool:
        return self._find(family) is not None

    def __getitem__(self, family: type) -> Rule:
        """The rule of a family: by the class itself, else by the nearest class that it inherits from.

        Raises:
            KeyError: no rule; the message holds a rule to fill in.
        """
        rule = self._find(family)
        if rule is None:
            raise KeyError(
                f"no weighted maximum-likelihood rule for {family.__name__}. Try registering one:\n" + self.stub(family)
            )
        return rule

    def stub(self, family: type) -> str:
        """Code to paste in order to add a rule for a family, or for the parts of a family that is made of others."""
        parts = [p for p in getattr(family, "parts", {}).values() if p not in self]
        if parts:
            return "\n\n".join(self.stub(p) for p in dict.fromkeys(parts))
        constraint = getattr(family, "support", None)
        vector = int(getattr(constraint, "event_dim", 0)) > 0
        lines = [
            "from ppl_em.mstep import weighted_mle",
            "",
            f"@weighted_mle.register({family.__name__})",
            f"def {family.__name__.lower()}(sample):",
            f"    count = sample.count(){'[:, None]' if vector else ''}  # total weight by row",
            "    mean = sample.sum('x') / count  # weighted statistics by row",
        ]
        arguments = getattr(family, "arg_constraints", None)
        for name in arguments if isinstance(arguments, Mapping) else ("arg",):  # some families compute theirs
            mass = f"sample.mass('{name}'){'[:, None]' if vector else ''}"
            lines += [
                f"    if '{name}' in sample.args and sample.free('{name}'):",
                "        # replace by the argument's own estimate:",
                f"        sample.propose('{name}', sample.pool('{name}', count * mean) / {mass})",
            ]
        return "\n".join(lines)

    def _find(self, family: Any) -> Rule | None:
        for base in getattr(family, "__mro__", ()):
            if base in self._rules:
                return self._rules[base]
            if base in self._makers:
                return self._makers[base](family)
        return None


def _namesake(family: type) -> type:
    """The most basic class of the same name that a family derives from (torch's Normal for Pyro's)."""
    return [base for base in family.__mro__ if base.__name__ == family.__name__][-1]


weighted_mle = Registry()
"""The rules that the M-step finds its closed forms in."""
