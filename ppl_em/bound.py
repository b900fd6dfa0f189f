"""The two readings of the evidence lower bound.

Reference:
    Neal, R. & Hinton, G. (1998). A view of the EM algorithm that justifies incremental, sparse, and other variants.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ppl_em.em.e_step import e_step, expected_log_joint
from ppl_em.plan.plan import Plan


@torch.no_grad()
def terms(plan: Plan, parameters: Mapping[str, Tensor], q: Mapping[str, Tensor]) -> dict[str, float]:
    """Parts of the bound at ``parameters`` with q the exact posterior at the parameters ``q``.

    Returns:
        ``expected_log_joint``, ``entropy``, ``elbo`` (their sum), ``log_likelihood``, ``kl`` (= log_likelihood − elbo),
        ``log_prior``; nats. The expected log-joint leaves priors of point estimates out.
    """
    at_q = e_step(plan, q)
    sites = [s for s in plan.sites() if s.point is None]
    # H(q) = log Z_q − E_q[log joint at q's own parameters]
    entropy = at_q.log_likelihood - float(expected_log_joint(plan, sites, at_q.weights, q))
    joint = float(expected_log_joint(plan, sites, at_q.weights, parameters))
    here = e_step(plan, parameters)
    elbo = joint + entropy
    return {
        "expected_log_joint": joint,
        "entropy": entropy,
        "elbo": elbo,
        "log_likelihood": here.log_likelihood,
        "kl": here.log_likelihood - elbo,
        "log_prior": here.log_prior,
    }
