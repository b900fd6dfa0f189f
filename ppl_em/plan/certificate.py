"""The certificate: what the plan calls exact, and the evidence for it, in a form that can be checked again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Certificate:
    """Evidence for what the plan calls exact. ``ppl_em.verify.rerun`` checks it against a program again.

    Args:
        treatment: by latent: ``"summed"``, ``"point-estimated"``, ``"approximated"``.
        witnesses: by name, what was done.
        unproven: reasons why exactness is not claimed.
        scopes: the latents on which each site depends, for sites that depend on any.
    """

    treatment: Mapping[str, str]
    witnesses: Mapping[str, str]
    unproven: tuple[str, ...] = ()
    scopes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "treatment": dict(self.treatment),
            "witnesses": dict(self.witnesses),
            "unproven": list(self.unproven),
            "scopes": {n: list(s) for n, s in self.scopes.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Certificate:
        """From plain JSON values."""
        scopes = {n: tuple(s) for n, s in values.get("scopes", {}).items()}
        return cls(dict(values["treatment"]), dict(values["witnesses"]), tuple(values["unproven"]), scopes)

    def differences(self, fresh: Certificate) -> list[str]:
        """What this certificate claims and a fresh one does not bear out.

        Args:
            fresh: of the same program, witnesses run again.
        """
        found = []
        for name in sorted({*self.treatment, *fresh.treatment}):
            mine, other = self.treatment.get(name, "not there"), fresh.treatment.get(name, "not there")
            if mine != other:
                found.append(f"latent '{name}' is {other}, not {mine}")
        for name in sorted({*self.scopes, *fresh.scopes}):
            mine, other = set(self.scopes.get(name, ())), set(fresh.scopes.get(name, ()))
            if mine != other:
                found.append(f"site '{name}' depends on {sorted(other)}, not on {sorted(mine)}")
        always = {"brute force"}  # whoever checks a certificate runs it anyway
        found += [f"no witness '{name}'" for name in self.witnesses if name not in {*fresh.witnesses, *always}]
        found += [f"unproven: {why}" for why in fresh.unproven if why not in self.unproven]
        return found
