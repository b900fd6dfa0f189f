"""What is left of a plan without the program and its data: of a loaded result, or where the data were streamed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppl_em.plan.plan import Plan


@dataclass(frozen=True)
class SavedPlan:
    """A plan without the program and its data: its text and its JSON form.

    Args:
        text: as printed.
        content: plain JSON values.
    """

    text: str
    content: Mapping[str, Any]

    @classmethod
    def of(cls, plan: Plan) -> SavedPlan:
        """What can be said of a plan without its data."""
        return cls(str(plan), plan.to_dict())

    @property
    def exact(self) -> bool:
        """Whether exactness was claimed."""
        return bool(self.content["exact"])

    @property
    def method(self) -> str:
        """``"em"`` or ``"svi"``."""
        return str(self.content["method"])

    @property
    def map_space(self) -> str:
        """The space of the priors' densities at point estimates."""
        return str(self.content.get("map_space", "constrained"))

    def rule_of(self, name: str) -> str:
        """M-step rule of a parameter."""
        for update in self.content["updates"]:
            if name in update["parameters"]:
                return str(update["rule"])
        raise KeyError(name)

    def engine_of(self, name: str) -> str:
        """Engine of a latent.

        Raises:
            KeyError: no such latent.
        """
        if name in self.content["points"]:
            return "point"
        if name in self.content["approximated"]:
            return str(self.content["approximated"][name])
        for block in self.content["blocks"]:
            if name in block["latents"]:
                return str(block["engine"])
        if any(s["site"] == name for s in self.content["structured"]):
            return "structured"
        raise KeyError(f"no latent '{name}'")

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        return dict(self.content)

    def __str__(self) -> str:
        return self.text
