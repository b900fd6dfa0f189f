"""Observed information and what follows from it: covariance of the estimates, standard errors, the delta method.

References:
    Efron, B. & Hinkley, D. (1978). Assessing the accuracy of the maximum likelihood estimator: observed versus
    expected Fisher information. Biometrika 65(3).
    White, H. (1982). Maximum likelihood estimation of misspecified models. Econometrica 50(1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppl_em.diagnostics.coordinates import Coordinates
from ppl_em.diagnostics.derivatives import hessian, jacobian
from ppl_em.em.e_step import objective
from ppl_em.errors import PplEmError, message
from ppl_em.per_datum import contributions, separate
from ppl_em.plan.plan import Plan

if TYPE_CHECKING:
    from ppl_em.result import FitResult

#: Eigenvalues of the information, scaled to a unit diagonal, below this are zero: the direction is not identified.
SINGULAR = 1e-8
#: A function whose gradient has more than this share in unidentified directions is not identified.
SHARE = 1e-5


@dataclass(frozen=True, eq=False)
class Information:
    """Observed information at the estimates, in free coordinates.

    Args:
        plan: the plan whose objective was differentiated.
        coordinates: the free coordinates.
        matrix: (P, P) minus the Hessian of the objective, nats per squared coordinate.
        gradient: (P,) of the objective.
        objective: its value, nats.
    """

    plan: Plan
    coordinates: Coordinates
    matrix: Tensor
    gradient: Tensor
    objective: float

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor, Tensor]:
        """Scale of each coordinate, eigenvalues and eigenvectors of the matrix scaled to a unit diagonal."""
        diagonal = self.matrix.diagonal().abs()
        scale = torch.where(diagonal > 0, diagonal, torch.ones_like(diagonal)).sqrt()
        values, vectors = torch.linalg.eigh(self.matrix / scale[:, None] / scale)
        return scale, values, vectors

    @property
    def eigenvalues(self) -> Tensor:
        """Eigenvalues (P,) of the information scaled to a unit diagonal, ascending; negative ones mark a saddle."""
        return self._spectrum[1]

    @property
    def conditional_errors(self) -> Tensor:
        """Standard error (P,) of each coordinate if all others were known; 1 where the objective is flat."""
        return 1 / self._spectrum[0]

    @property
    def is_saddle(self) -> bool:
        """Whether the objective curves upwards in some direction."""
        return bool((self.eigenvalues < -SINGULAR).any())

    @property
    def num_unidentified(self) -> int:
        """Number of directions along which the objective does not change."""
        return int((self.eigenvalues.abs() <= SINGULAR).sum())

    @cached_property
    def covariance(self) -> Tensor:
        """Inverse (P, P) of the information over the identified directions.

        Raises:
            PplEmError: the point is a saddle: there is no covariance.
        """
        if self.is_saddle:
            raise PplEmError(
                message(
                    "the observed information is not positive definite: the fit is not at a maximum",
                    value=f"smallest scaled eigenvalue {float(self.eigenvalues[0]):.3g}",
                    hint="more steps, more restarts, or another init",
                )
            )
        root = self._root
        return root @ root.T

    @property
    def _root(self) -> Tensor:
        """(P, identified) with root rootᵀ the covariance."""
        scale, values, vectors = self._spectrum
        keep = values > SINGULAR
        return vectors[:, keep] / values[keep].sqrt() / scale[:, None]

    @property
    def root(self) -> Tensor:
        """(P, identified) square root of :attr:`covariance`: ``root @ normal draws`` has that covariance."""
        _ = self.covariance
        return self._root

    @property
    def null(self) -> Tensor:
        """(P, num_unidentified) directions along which the objective does not change, in scaled coordinates."""
        scale, values, vectors = self._spectrum
        return vectors[:, values.abs() <= SINGULAR] / scale[:, None]

    @property
    def predicted_gain(self) -> float:
        """Nats that a Newton step predicts are left to gain: ½ gᵀ I⁻¹ g."""
        return 0.5 * float((self._root.T @ self.gradient).square().sum())

    def identified(self, gradients: Tensor) -> Tensor:
        """Which functions (rows of gradients, (m, P)) do not change along unidentified directions."""
        scale, _, _ = self._spectrum
        null = self.null * scale[:, None]
        along = (gradients / scale) @ null
        whole = (gradients / scale).norm(dim=-1)
        return along.norm(dim=-1) <= SHARE * whole + 1e-300


def observed_information(result: FitResult) -> Information:
    """Observed information of an exact fit at its returned parameters.

    Raises:
        PplEmError: the fit is not exact, or has too many parameters.
    """
    if result.log_likelihood is None:
        raise PplEmError(message("the observed information needs an exact log-likelihood", hint='method="em"'))
    plan = result._plan_for(())
    coordinates = Coordinates.at(plan.program, result._values)
    if not coordinates.origin.numel():
        raise PplEmError(message("there is no free parameter to be uncertain about", hint="freezing fewer of them"))
    value, gradient, matrix = hessian(lambda values: objective(plan, values), coordinates, coordinates.origin)
    if not bool(torch.isfinite(matrix).all()):
        raise PplEmError(
            message(
                "the second derivative of the objective is not finite", hint="freeze=(...) for parameters at a boundary"
            )
        )
    return Information(plan, coordinates, -matrix, gradient, value)


def covariance(information: Information, kind: str = "observed") -> Tensor:
    """Covariance (P, P) of the estimates in free coordinates.

    Args:
        information: observed information.
        kind: ``"observed"`` (inverse information) or ``"sandwich"`` (valid also where the model is misspecified).

    Raises:
        PplEmError: unknown kind, or a sandwich where the data are not separate.
    """
    if kind == "observed":
        return information.covariance
    if kind != "sandwich":
        raise PplEmError(message("unknown kind of covariance", value=kind, hint='"observed" or "sandwich"'))
    plan = information.plan
    if not separate(plan):
        raise PplEmError(
            message(
                "the sandwich form needs independent data",
                why="the likelihood is not a product over a data plate",
                hint='kind="observed"',
            )
        )
    coordinates = information.coordinates
    scores = jacobian(lambda v: contributions(plan, v, scaled=True), coordinates, coordinates.origin)
    bread = information.covariance
    return bread @ (scores.T @ scores) @ bread


def elements(information: Information, kind: str = "observed") -> tuple[Tensor, Tensor]:
    """Covariance (E, E) and standard errors (E,) of all elements of all parameters, on the constrained scale.

    An element on the boundary of its constraint has the standard error NaN; one that the data do not identify,
    infinity.
    """
    jac = information.coordinates.jacobian()
    matrix = jac @ covariance(information, kind) @ jac.T
    errors = matrix.diagonal().clamp_min(0).sqrt()
    errors = torch.where(information.identified(jac), errors, torch.inf)
    return matrix, errors.masked_fill(information.coordinates.fixed, torch.nan)


def standard_errors(information: Information, kind: str = "observed") -> dict[str, Tensor]:
    """Standard errors by parameter, shaped as the parameter; frozen ones are left out."""
    _, errors = elements(information, kind)
    charts = information.coordinates.charts
    parts = errors.split([c.origin.numel() for c in charts])
    return {c.name: part.reshape(c.origin.shape) for c, part in zip(charts, parts, strict=True)}


def standard_error(
    information: Information, function: Callable[[Mapping[str, Tensor]], Tensor], kind: str = "observed"
) -> Tensor:
    """Standard error of a function of the parameters by the delta method.

    Args:
        information: observed information.
        function: from constrained values by name to a tensor, differentiable in PyTorch.
        kind: as for :func:`covariance`.

    Returns:
        Shaped as the function's value; infinite where the data do not identify it.
    """
    coordinates = information.coordinates
    shape = torch.as_tensor(function(coordinates.values(coordinates.origin))).shape
    gradients = torch.autograd.functional.jacobian(
        lambda u: torch.as_tensor(function(coordinates.values(u))).double().reshape(-1), coordinates.origin
    )
    gradients = torch.as_tensor(gradients)
    errors = ((gradients @ covariance(information, kind)) * gradients).sum(-1).clamp_min(0).sqrt()
    return torch.where(information.identified(gradients), errors, torch.inf).reshape(shape)
