"""Parameters of the priors of point-estimated latents: which of them have a maximum-likelihood value at all."""

from __future__ import annotations

from ppl_em.errors import PlanError, message
from ppl_em.plan.plan import Plan

#: Arguments that move a density without changing its height.
LOCATIONS = frozenset({"loc"})


def refuse_hyperparameters(plan: Plan) -> None:
    """Refuse parameters without a prior that feed the spread of a point estimate's prior and nothing else.

    The joint density of a latent and its prior's scale has no maximum: it grows without bound as the prior narrows about
    the latent's value. (A location only moves the prior: it is estimated together with the latent.)

    Args:
        plan: the plan.

    Raises:
        PlanError: names the parameter and the latent.

    Reference:
        Gelman, A. et al. (2013). Bayesian Data Analysis, 3rd edition, section 13.1.
    """
    parameters = plan.program.parameters
    priors = [s for s in plan.plain if s.point is not None and not parameters[s.point].frozen]
    others = [s for s in plan.sites() if s.point is None]
    for prior in priors:
        loose = {
            source
            for name, argument in prior.arguments.items()
            if name not in LOCATIONS
            for source in argument.sources
            if parameters[source].origin != "site" and not parameters[source].frozen
        }
        for name in sorted(loose):
            if not any(name in s.parameters for s in others):
                why = f"it feeds only the prior of '{prior.point}': the narrower that prior, the larger their joint density"
                hint = f"a prior for '{name}', freeze=['{name}'], or method=\"svi\", which infers '{prior.point}'"
                what = "a parameter has no maximum-likelihood value beside a point estimate"
                raise PlanError(message(what, site=name, why=why, hint=hint))
