"""One table of tolerances, so that none is chosen test by test to make a test pass.

All are absolute, for float64, in the unit named; relative where the name says so.
"""

EXACT = 1e-12
"""Two orders of the same arithmetic: a permutation, a reshape, a round trip."""

BRUTE_FORCE = 1e-9
"""An engine against enumeration of all assignments (nats, or a probability)."""

GRADIENT = 1e-7
"""A derivative against another derivative of the same quantity, relative to its largest element."""

FINITE_DIFFERENCE = 1e-5
"""A derivative against central finite differences, relative to its largest element."""

ASCENT = 1e-9
"""Largest fall of the objective in one EM step that counts as rounding, relative to 1 + |objective|."""

STATIONARY = 1e-6
"""Norm of the projected gradient of Q at a closed-form proposal, per unit of weight."""

TRAJECTORY = 1e-8
"""An EM trajectory against a peer's, per iteration, in average nats per observation."""

TRAJECTORY_FLOAT32 = 1e-7
"""As TRAJECTORY, against a peer that computes in float32."""

PUBLISHED = 1e-3
"""A maximum against a published one (nats)."""

STATISTICAL = 4.0
"""Monte Carlo estimates: allowed deviation in standard errors."""
"""One-sided error rate 3e-5 per comparison; every such test is seeded."""
